"""Time block reconstruction unit by unit, with a few iterations of each, and say what all of them would take."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from halftone.artifact import load_pipeline
from halftone.foundation.progress import Progress, Task
from halftone.methods.contract import Run
from halftone.recipes import Recipe, load, run_recipe

_ITERATIONS = 3  # the first is not timed
_PROMPTS = ("a photograph of an astronaut riding a horse", "a watercolour of a fox", "a red house", "a bowl of soup")


@dataclass(frozen=True)
class Given:
    """How units are timed.

    Attributes:
        batches: samples an iteration, two of them: what does not depend on the batch is told apart from what does.
        pixels: side of the picture.
        device: where the model is.
    """

    batches: tuple[int, int] = (1, 4)
    pixels: int = 512
    device: str = "cpu"


class _Clock(Progress):
    """Notes when each iteration of each unit ended; shows nothing."""

    def __init__(self, device: str) -> None:
        super().__init__(enabled=False)
        self.device, self.ends = device, {}  # type: ignore[var-annotated]

    def task(self, label: str, total: int | None, unit: str = "", *more: Any, **named: Any) -> Task:
        task = super().task(label, total, unit, *more, **named)
        if unit != "iterations":
            return task
        ends: list[float] = self.ends.setdefault(label, [])
        advance = task.advance

        def noted(n: int = 1, note: str = "") -> None:
            if self.device != "cpu":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())
            advance(n, note)

        task.advance = noted  # type: ignore[method-assign]
        return task

    def seconds(self) -> dict[str, float]:
        """Return the shortest iteration of each unit."""
        return {path: min(b - a for a, b in zip(ends, ends[1:], strict=False)) for path, ends in self.ends.items()}


def timed(recipe: str, model: Path, given: Given, work: Path) -> dict[str, Any]:
    """Return seconds of an iteration of each unit, what an iteration of the paper's batch comes to, and the whole.

    The whole is the learning alone: iterations times the sum over units. Walking and judging add a few per cent.
    """
    paper = load(recipe, "paper")
    learned = paper.steps["reconstruct"]
    by_batch = {}
    for batch in given.batches:
        with _temporary(work) as place:
            by_batch[batch] = _timed(_shortened(paper, batch), model, given, batch, place)
    few, many = given.batches
    batch, iterations = learned["batch"], learned["iterations"]
    units = {}
    for path, least in by_batch[few].items():
        each = max(0.0, (by_batch[many][path] - least) / (many - few))  # of a sample
        fixed = max(0.0, least - few * each)
        units[path] = {
            "seconds": {str(size): round(by_batch[size][path], 4) for size in given.batches},
            "sample": round(each, 5),
            "fixed": round(fixed, 5),
            "iteration": round(fixed + batch * each, 4),
        }
    iteration = sum(unit["iteration"] for unit in units.values())
    return {
        "units": units,
        "batch": batch,
        "iterations": iterations,
        "iteration": round(iteration, 3),
        "seconds": round(iteration * iterations),
    }


def _shortened(paper: Recipe, batch: int) -> Recipe:
    """Return the recipe with its rounding and its reconstruction alone, of a few iterations on a few samples."""
    nearest = {"method": "rounding/nearest", "range": "min_max"}
    few = {"iterations": _ITERATIONS, "batch": batch, "judged_on": 0, "walk_batch": 1, "warm_up": 0.0}
    ranges = {"method": "ranges/static", "range": "min_max", "samples": 1, "batch": 1}  # a recipe must end with some
    steps = {"weights": nearest, "reconstruct": {**paper.steps["reconstruct"], **few}, "activations": ranges}
    return replace(paper, steps=steps, calibration=replace(paper.calibration, samples=batch, batch=1, influence=0))


def _timed(recipe: Recipe, model: Path, given: Given, batch: int, work: Path) -> dict[str, float]:
    pipe: Any = load_pipeline(model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(given.device)
    call = {"height": given.pixels, "width": given.pixels, "guidance_scale": 1.0}
    recipe = replace(recipe, calibration=replace(recipe.calibration, arguments=call))
    clock = _Clock(given.device)
    run = Run(work=work, memory=2**31, progress=clock)
    run_recipe(pipe, recipe, 2, run, each={"prompt": _PROMPTS[:batch]})
    return clock.seconds()


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A folder that was not there and is not there afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
