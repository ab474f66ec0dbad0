"""``python -m benchmarks.cpu_unet run`` measures, ``python -m benchmarks.cpu_unet render`` writes the page."""

import argparse
import os
import sys
from pathlib import Path

from benchmarks.command import chosen_sections, finished, parsers, say
from benchmarks.cpu_unet.settings import CACHE, DOCS, RESULTS, SECTIONS, Settings
from benchmarks.records import README
from halftone.foundation.progress import Progress


def _parser() -> argparse.ArgumentParser:
    parser, run, render = parsers("cpu_unet", __doc__, SECTIONS, RESULTS, DOCS, CACHE)
    render.add_argument("--readme", type=Path, default=README)
    run.add_argument("--rows", default="*", help="only rows whose section/name matches this, such as 'latency/*-512-*'")
    run.add_argument(
        "--contenders",
        default="*",
        help="only contenders whose names match one of these, with commas between them; in latency rows "
        "torch-bf16 and openvino-int8 take part in any case",
    )
    run.add_argument(
        "--rounds",
        type=int,
        default=9,
        help="turns of each contender in a latency row that is measured; those that are there stay, whatever theirs",
    )
    run.add_argument(
        "--memory", type=float, default=12.0, help="GiB that the processes of one group may take; default: %(default)s"
    )
    run.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each contender; default: %(default)s")
    run.add_argument(
        "--peers", type=Path, help="the Python that has requirements.txt; default: one is made in the cache"
    )
    return parser


def _settings(chosen: argparse.Namespace) -> Settings:
    sections = chosen_sections(chosen.only, SECTIONS)
    given = {key: getattr(chosen, key) for key in ("contenders", "rounds", "threads", "peers", "resume")}
    places = {"results": chosen.results, "cache": chosen.cache.resolve()}
    return Settings(
        sections=sections,
        pattern=chosen.rows,
        memory=int(chosen.memory * 2**30),
        **given,
        **places,
    )


def main(arguments: list[str] | None = None) -> int:
    """Return 0; 2 for a wrong request, 130 when interrupted."""
    chosen = _parser().parse_args(arguments)

    def work(progress: Progress) -> list[str]:
        if chosen.command == "render":
            from benchmarks.cpu_unet.render import render

            for line in render(chosen.results, chosen.docs, chosen.readme):
                say(line)
            return []
        from benchmarks.cpu_unet.run import run

        return run(_settings(chosen), say)

    return finished(work)


if __name__ == "__main__":
    sys.exit(main())
