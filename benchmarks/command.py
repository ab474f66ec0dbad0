"""What the commands of all studies share: the options that each has, and how it ends."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from halftone.foundation.errors import HalftoneError
from halftone.foundation.progress import Progress


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def finished(work: Callable[[Progress], list[str]]) -> int:
    """Return 0; 1 where ``work`` returns names of rows that failed, 2 for a wrong request, 130 when interrupted."""
    try:
        with Progress() as progress:
            failed = work(progress)
    except HalftoneError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    if failed:
        print("failed: " + ", ".join(failed), file=sys.stderr)
    return 1 if failed else 0


def chosen_sections(only: str, known: Sequence[str]) -> tuple[str, ...]:
    """Return the sections named in ``only``, with commas between them; an unknown one ends the program with a sentence."""
    sections = tuple(part.strip() for part in only.split(",") if part.strip())
    unknown = [part for part in sections if part not in known]
    if unknown:
        raise SystemExit(f"--only: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    return sections


def parsers(
    study: str, description: str | None, sections: Sequence[str], results: Path, docs: Path, cache: Path
) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser, argparse.ArgumentParser]:
    """Return the parser of a study, that of its command ``run`` and that of ``render``, to which it adds options of its own."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{study}", description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure the rows that are missing")
    run.add_argument("--only", default=",".join(sections), help="sections, with commas between them: %(default)s")
    run.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help="skip rows that are there")
    run.add_argument("--cache", type=Path, default=cache, help="models and what else was made; default: %(default)s")
    render = commands.add_parser("render", help="write the pages")
    render.add_argument("--docs", type=Path, default=docs)
    for command in (run, render):
        command.add_argument("--results", type=Path, default=results, help="folder of the rows; default: %(default)s")
    return parser, run, render
