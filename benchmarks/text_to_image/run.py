"""Measure the rows that are missing, one after the other; a row is one JSON file."""

import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.records import circumstances, decisive, readable, recipe_digest, there
from benchmarks.text_to_image.looking import Looks
from benchmarks.text_to_image.measure import measure
from benchmarks.text_to_image.pictures import SHOWN, adapted, moved_most
from benchmarks.text_to_image.plan import Row, rows, timed
from benchmarks.text_to_image.settings import Settings
from benchmarks.text_to_image.uses import USES
from benchmarks.text_to_image.workshop import Workshop
from halftone.foundation.errors import HalftoneError
from halftone.foundation.files import write_atomically
from halftone.foundation.progress import Progress

SCHEMA = 1


def run(settings: Settings, say: Callable[[str], None] = print, progress: Progress | None = None) -> list[str]:
    """Measure all missing rows of the sections asked for and return the names of those that failed."""
    workshop = Workshop(settings, progress)
    looks = Looks(workshop)
    left_out = sorted(name for name, use in USES.items() if not use.available(settings))
    if left_out and "uses" in settings.sections:
        say(f"left out, for want of --lora or --controlnet: {'; '.join(left_out)}")
    if settings.lora is not None and settings.squeezenet is None:
        say("without --squeezenet pictures drawn with the LoRA are compared with real ones that are not in its style")
    asked = rows(settings)
    wanted = [row for row in asked if not (settings.resume and _there(row, workshop))]
    say(f"{len(asked)} rows, {len(asked) - len(wanted)} there already, {len(wanted)} to do")
    failed = []
    for number, row in enumerate(wanted, 1):
        name = f"{row.section}/{row.name}"
        began = time.monotonic()
        try:
            metrics = measure(row, workshop, looks)
            file = path_of(row, settings)
            picture = _picture(row, workshop, metrics, looks)
            if picture is not None:  # before the row: a row that is there is not looked at again
                write_atomically(file.with_suffix(".png"), picture)
            write_atomically(file, readable(_record(row, workshop, metrics, time.monotonic() - began)))
        except Exception as error:  # whatever a library raises: hours of other rows are still to come
            if not isinstance(error, HalftoneError):
                traceback.print_exc()
            say(f"[{number}/{len(wanted)}] {name} failed: {error}")
            failed.append(name)
            continue
        seconds = time.monotonic() - began
        say(f"[{number}/{len(wanted)}] {name}: {seconds / 60:.1f} min")
    return failed


def _picture(row: Row, workshop: Workshop, metrics: dict[str, Any], looks: Looks) -> bytes | None:
    """Return the row's picture for the page, None for most rows."""
    if row.method != "Q-Diffusion" or row.section not in ("quality", "uses"):
        return None
    if row.section == "quality":
        return moved_most(row, workshop, metrics, looks)
    return adapted(row, workshop) if row.use in SHOWN else None


def path_of(row: Row, settings: Settings) -> Path:
    """Return the file of a row."""
    return settings.results / row.section / f"{row.name}.json"


def protocol(row: Row, workshop: Workshop) -> dict[str, Any]:
    """Return what the numbers of a row depend on: a row that exists with the same protocol is not measured again."""
    given = workshop.settings
    facts: dict[str, Any] = {"model": workshop.model, "use": {"name": row.use, **asdict(USES[row.use])}}
    if row.section == "latency":
        recipes = {each.recipe: recipe_digest(workshop.recipe(each)) for each in timed(row)}
        return {**facts, "rounds": given.rounds, "steps": given.steps, "recipes_sha256": recipes}
    facts |= {"attached": workshop.attached(USES[row.use]), "device": given.device}
    # JSON has no tuples.
    facts |= {"prompts": len(workshop.known.prompts), "seeds": list(given.seeds)}
    facts |= {"steps": USES[row.use].steps or given.steps, "guidance": given.guidance}
    facts["features"] = ["latents", *(["SqueezeNet"] if given.squeezenet else [])]
    if row.recipe is not None:
        facts |= {"recipe_sha256": recipe_digest(workshop.recipe(row)), "calibration_seed": given.seed}
    return facts


def _there(row: Row, workshop: Workshop) -> bool:
    file = path_of(row, workshop.settings)
    return there(file, protocol(row, workshop))


def _record(row: Row, workshop: Workshop, metrics: dict[str, Any], seconds: float) -> dict[str, Any]:
    recipe = None
    if row.recipe is not None:
        recipe = {"name": row.recipe, "budget": workshop.settings.budget, "resolved": decisive(workshop.recipe(row))}
    return {
        "schema": SCHEMA,
        "row": asdict(row),
        "protocol": protocol(row, workshop),
        "recipe": recipe,
        **circumstances(seconds),
        "metrics": metrics,
    }
