"""Measure the rows that are missing, one after the other."""

import time
from collections.abc import Callable

from benchmarks.q_diffusion.measure import measure
from benchmarks.q_diffusion.pipelines import Workshop, seconds_per_image_call
from benchmarks.q_diffusion.plan import Row, rows
from benchmarks.q_diffusion.record import differences, path_of, recipe_of, refresh_labels, steps_of, write
from benchmarks.q_diffusion.settings import Settings
from halftone.foundation.errors import HalftoneError
from halftone.foundation.progress import Progress

_BACKWARD = 3.0  # a training step costs about three forward passes
_TRAIL = 256


def run(settings: Settings, say: Callable[[str], None] = print, progress: Progress | None = None) -> list[str]:
    """Measure all missing rows of the sections asked for and return the names of those that failed."""
    workshop = Workshop(settings, progress)
    wanted, asked = [], rows(settings)
    for row in asked:
        changed = differences(row, workshop.model, settings)
        if settings.resume and changed == []:
            refresh_labels(row, settings)
            continue
        if changed:
            say(f"again: {row.section}/{row.name} (other {', '.join(changed)})")
        wanted.append(row)
    say(f"{len(asked)} rows, {len(asked) - len(wanted)} there already, {len(wanted)} to do")
    if not wanted:
        return []
    pace = seconds_per_image_call(workshop)
    guesses = [estimate(row, workshop, pace) for row in wanted]
    say(f"about {_spoken(sum(guesses))} at {1 / pace:.0f} image calls a second ({settings.batch} at a time)")
    failed = []
    for number, (row, guess) in enumerate(zip(wanted, guesses, strict=True), 1):
        name = f"{row.section}/{row.name}"
        left = _spoken(sum(guesses[number - 1 :]))
        say(f"[{number}/{len(wanted)}] {name}: about {_spoken(guess)}; all that is left: {left}")
        began = time.monotonic()
        try:
            metrics = measure(row, workshop)
        except HalftoneError as error:
            failed.append(name)
            say(f"  failed: {error}")
            continue
        write(row, workshop.model, settings, metrics, time.monotonic() - began)
        say(f"  {_spoken(time.monotonic() - began)} -> {path_of(row, settings).name}")
    return failed


def estimate(row: Row, workshop: Workshop, pace: float) -> float:
    """Return about how many seconds a row takes, from the time of one denoiser call for one image.

    A row whose model or float samples are in the cache takes less; one that is the first to need them pays for all.
    """
    samples = min(row.samples, _TRAIL) if row.kind == "trail" else row.samples
    sampling = samples * steps_of(row.sampler, workshop.settings) * pace
    if row.kind in ("ranges", "latency"):
        return 300.0
    if row.recipe is None or (workshop.artifact_of(row) / "quantize.json").exists():
        return sampling
    recipe = recipe_of(row)
    calls = recipe.calibration.samples * pace
    # Each step of a recipe passes over all samples once or twice; recording runs whole trajectories.
    work = calls * (2 * len(recipe.steps) + steps_of(row.calibrated_for, workshop.settings) / 20)
    for step in recipe.steps.values():
        # Units are trained one by one, and together they are the model once.
        work += step.get("iterations", 0) * step.get("batch", 32) * pace * _BACKWARD
    return sampling + work


def _spoken(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
