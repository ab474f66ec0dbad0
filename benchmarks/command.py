"""How the commands of all studies end."""

import sys
from collections.abc import Callable, Sequence

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
