"""``python -m benchmarks.q_diffusion run`` measures, ``python -m benchmarks.q_diffusion render`` writes the pages."""

import argparse
import sys
from pathlib import Path

from benchmarks.command import chosen_sections, finished, parsers, say
from benchmarks.q_diffusion.settings import CACHE, DOCS, MODEL, RESULTS, SECTIONS, Settings
from benchmarks.records import README
from halftone.foundation.allocator import keep_freed_memory
from halftone.foundation.progress import Progress


def _parser() -> argparse.ArgumentParser:
    parser, run, render = parsers("q_diffusion", __doc__, SECTIONS, RESULTS, DOCS, CACHE)
    run.add_argument("--rows", default="*", help="only rows whose section/name matches this, such as '*/*w4a8*'")
    run.add_argument(
        "--samples", type=int, help="of every row; default: 5000 in headline and budgets, 1000 in haze, 2000 elsewhere"
    )
    run.add_argument("--steps", type=int, default=20, help="of DDIM, for calibration and evaluation")
    run.add_argument(
        "--budget",
        choices=["demo", "fast", "paper"],
        help="default: fast; demo in edges, bias, timesteps, ablation and budgets. paper takes hours a row and is never a default: "
        "ask for it here, or by rows such as 'budgets/*-paper'",
    )
    run.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the calibration; the first is the main"
    )
    run.add_argument("--noise", type=int, default=0, help="seed of the evaluation's noise")
    run.add_argument("--batch", type=int, default=16, help="images at a time")
    run.add_argument("--rounds", type=int, default=30, help="of the latency's run")
    run.add_argument("--model", default=MODEL, help="zoo:NAME or a pipeline folder; default: %(default)s")
    run.add_argument("--device", default="cpu", help="where images are drawn (simulated, unless it is the cpu)")
    run.add_argument("--jobs", type=int, default=1, choices=[1], help="rows at a time: one, as it uses all threads")
    render.add_argument("--readme", type=Path, default=README)
    return parser


def _settings(chosen: argparse.Namespace) -> Settings:
    return Settings(
        sections=chosen_sections(chosen.only, SECTIONS),
        pattern=chosen.rows,
        samples=chosen.samples,
        budget=chosen.budget,
        steps=chosen.steps,
        seeds=tuple(dict.fromkeys(chosen.seeds)),
        noise=chosen.noise,
        batch=chosen.batch,
        model=chosen.model,
        device=chosen.device,
        rounds=chosen.rounds,
        resume=chosen.resume,
        results=chosen.results,
        cache=chosen.cache,
    )


def main(arguments: list[str] | None = None) -> int:
    """Return 0; 1 where a row failed, 2 for a wrong request, 130 when interrupted."""
    chosen = _parser().parse_args(arguments)
    keep_freed_memory()

    def work(progress: Progress) -> list[str]:
        if chosen.command == "render":
            from benchmarks.q_diffusion.render import render

            for line in render(chosen.results, chosen.docs, chosen.readme):
                say(line)
            return []
        from benchmarks.q_diffusion.run import run

        return run(_settings(chosen), say, progress)

    return finished(work)


if __name__ == "__main__":
    sys.exit(main())
