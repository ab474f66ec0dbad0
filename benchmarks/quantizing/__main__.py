"""``python -m benchmarks.quantizing run`` measures, ``python -m benchmarks.quantizing render`` writes the page."""

import argparse
import sys
from dataclasses import replace

from benchmarks.command import chosen_sections, finished, parsers, say
from benchmarks.quantizing.settings import CACHE, DOCS, RESULTS, SECTIONS, Settings
from halftone.foundation.progress import Progress


def _parser() -> argparse.ArgumentParser:
    parser, run, _ = parsers("quantizing", __doc__, SECTIONS, RESULTS, DOCS, CACHE)
    run.add_argument("--recipes", default="*", help="only whole quantizations of this recipe")
    run.add_argument("--device", default="cpu", help="where blocks are timed: cpu or cuda")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Return 0; 1 where a row failed, 2 for a wrong request, 130 when interrupted."""
    chosen = _parser().parse_args(arguments)

    def work(_: Progress) -> list[str]:
        if chosen.command == "render":
            from benchmarks.quantizing.render import render

            for line in render(chosen.results, chosen.docs):
                say(line)
            return []
        from benchmarks.quantizing.run import run

        usual = Settings()
        settings = replace(
            usual,
            sections=chosen_sections(chosen.only, SECTIONS),
            commands=tuple(each for each in usual.commands if chosen.recipes in ("*", each.recipe)),
            given=replace(usual.given, device=chosen.device),
            resume=chosen.resume,
            results=chosen.results,
            cache=chosen.cache.resolve(),
        )
        return run(settings, say)

    return finished(work)


if __name__ == "__main__":
    sys.exit(main())
