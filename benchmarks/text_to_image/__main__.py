"""``python -m benchmarks.text_to_image run`` measures, ``python -m benchmarks.text_to_image render`` writes the page."""

import argparse
import sys
from pathlib import Path

from benchmarks.command import chosen_sections, finished, parsers, say
from benchmarks.records import README
from benchmarks.text_to_image.settings import CACHE, DOCS, MODEL, RESULTS, SECTIONS, Settings
from halftone.foundation.allocator import keep_freed_memory
from halftone.foundation.progress import Progress
from halftone.zoo.catalog import entry

# Of the zoo, for the model that is the default.
ADAPTERS = {"lora": "emoji-style-lora", "controlnet": "emoji-controlnet"}


def _parser() -> argparse.ArgumentParser:
    parser, run, render = parsers("text_to_image", __doc__, SECTIONS, RESULTS, DOCS, CACHE)
    render.add_argument("--readme", type=Path, default=README)
    run.add_argument("--rows", default="*", help="only rows whose section/name matches this, such as 'uses/*w4a8'")
    run.add_argument("--prompts", type=int, default=200, help="of the model's own 200")
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the noise, each with all prompts")
    run.add_argument("--guidance", type=float, default=5.0)
    run.add_argument("--steps", type=int, default=25)
    run.add_argument("--seed", type=int, default=0, help="of the calibration")
    run.add_argument("--budget", choices=["demo", "fast", "paper"], default="fast")
    run.add_argument("--batch", type=int, default=16, help="images at a time")
    run.add_argument("--rounds", type=int, default=30, help="of the latency's run")
    run.add_argument("--device", default="cpu", help="cpu or cuda; latency is always the CPU's")
    run.add_argument("--model", default=MODEL, help="zoo:NAME or a pipeline folder; default: %(default)s")
    usual = f"its folder; default: zoo:NAME for {MODEL}, where it ships; without one its rows are left out"
    for what, name in ADAPTERS.items():
        run.add_argument(f"--{what}", type=Path, help=usual.replace("NAME", name))
    run.add_argument("--squeezenet", type=Path, help="its weights, with the emoji beside them; adds its features")
    return parser


def _settings(chosen: argparse.Namespace) -> Settings:
    sections = chosen_sections(chosen.only, SECTIONS)
    given = {key: value for key, value in vars(chosen).items() if key not in ("command", "only", "rows", "seeds")}
    for what, name in ADAPTERS.items():
        if given["model"] == MODEL and given[what] is None and entry(name).installed:
            given[what] = entry(name).path
    return Settings(
        sections=sections,
        pattern=chosen.rows,
        seeds=tuple(dict.fromkeys(chosen.seeds)),
        **given,
    )


def main(arguments: list[str] | None = None) -> int:
    """Return 0; 1 where a row failed, 2 for a wrong request, 130 when interrupted."""
    chosen = _parser().parse_args(arguments)
    keep_freed_memory()

    def work(progress: Progress) -> list[str]:
        if chosen.command == "render":
            from benchmarks.text_to_image.render import render

            for line in render(chosen.results, chosen.docs, chosen.readme):
                say(line)
            return []
        from benchmarks.text_to_image.run import run

        return run(_settings(chosen), say, progress)

    return finished(work)


if __name__ == "__main__":
    sys.exit(main())
