"""Measure the rows that are missing, one after the other; a row is one JSON file."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cpu_unet.cases import SD15
from benchmarks.cpu_unet.models import SD15_PARAMETERS
from benchmarks.cpu_unet.settings import Settings as Sizes
from benchmarks.cpu_unet.workshop import Workshop
from benchmarks.quantizing.arithmetic import counted
from benchmarks.quantizing.blocks import timed
from benchmarks.quantizing.bounded import Bounded, bounded
from benchmarks.quantizing.settings import Settings
from benchmarks.quantizing.whole import watched
from benchmarks.records import circumstances, readable, recipe_digest, there
from halftone.foundation.errors import HalftoneError
from halftone.foundation.files import write_atomically
from halftone.recipes import load

SCHEMA = 1
Measure = Callable[[Path, Path], dict[str, Any]]  # of the model's folder and one for unfinished work


def run(settings: Settings, say: Callable[[str], None] = print) -> list[str]:
    """Measure all missing rows of the sections asked for and return the names of those that failed."""
    model = Workshop(Sizes(cache=settings.cache, sd15=settings.sd15), say).model(SD15)
    failed = []
    for name, protocol, measure in _rows(settings, say):
        file = settings.results / f"{name}.json"
        if settings.resume and there(file, protocol):
            say(f"{name}: there already")
            continue
        began = time.monotonic()
        try:
            metrics = measure(model, settings.cache / "quantizing")
        except HalftoneError as error:
            say(f"{name} failed: {error}")
            failed.append(name)
            continue
        seconds = time.monotonic() - began
        content = {"schema": SCHEMA, "protocol": protocol, **circumstances(seconds), "metrics": metrics}
        write_atomically(file, readable(content))
        say(f"{name}: {metrics.get('seconds', seconds):.0f} s{' in all' if 'units' in metrics else ''}")
    return failed


def _rows(settings: Settings, say: Callable[[str], None]) -> Iterator[tuple[str, dict[str, Any], Measure]]:
    """Yield each row's ``section/name``, what its numbers depend on, and how to get them."""
    if "whole" in settings.sections:
        for command in settings.commands:
            name = f"whole/{command.recipe}-{command.budget}"
            yield (
                name,
                asdict(command) | _recipe(command.recipe, command.budget),
                lambda model, work, given=command: watched(given, model, work, say),
            )
    if "blocks" in settings.sections:
        given = settings.given
        protocol = {"recipe": settings.recipe, **asdict(given), **_recipe(settings.recipe, "paper")}
        yield (
            f"blocks/{settings.recipe}-{given.device}",
            protocol,
            lambda model, work: timed(settings.recipe, model, given, work),
        )
    if "arithmetic" in settings.sections:
        pixels = settings.given.pixels
        protocol = {"recipe": settings.recipe, "pixels": pixels, **_recipe(settings.recipe, "paper")}
        yield f"arithmetic/{settings.recipe}", protocol, lambda model, work: counted(settings.recipe, model, pixels)

    if "bounded" in settings.sections:
        slow = settings.bounded
        name = f"bounded/{Path(slow.recipe).stem}"
        yield name, asdict(slow) | _of_file(slow), lambda model, work: bounded(slow, model, work)


def _recipe(name: str, budget: str) -> dict[str, str]:
    """Return a digest of what the recipe does with a large denoiser: rows of another one are measured again."""
    return {"recipe_sha256": recipe_digest(load(name, budget, [], SD15_PARAMETERS))}


def _of_file(given: Bounded) -> dict[str, str]:
    recipe = Path(__file__).parent / given.recipe
    return {"recipe_sha256": recipe_digest(load(str(recipe), "paper", [], SD15_PARAMETERS))}
