"""The record of a row: one JSON file that says what was measured, how, on what and with which code."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.q_diffusion.plan import Row
from benchmarks.q_diffusion.settings import Settings
from benchmarks.records import circumstances, decisive, readable, recipe_digest
from halftone.foundation.build import plain
from halftone.foundation.files import write_atomically
from halftone.recipes import Recipe, load

SCHEMA = 1


@dataclass(frozen=True)
class Model:
    """The float model of a study: what it is called and the digest of its denoiser's weights."""

    name: str
    sha256: str


def recipe_of(row: Row) -> Recipe:
    """Return the row's resolved recipe."""
    assert row.recipe is not None
    return load(row.recipe, row.budget, list(row.overrides))


def protocol(row: Row, model: Model, settings: Settings) -> dict[str, Any]:
    """Return what the numbers of a row depend on: a row that exists with the same protocol is not measured again."""
    facts: dict[str, Any] = {
        "kind": row.kind,
        "model": plain(model),
        "samples": row.samples,
        "sampler": row.sampler,
        "steps": steps_of(row.sampler, settings),
        "noise_seed": settings.noise,
        "device": settings.device,
    }
    if row.kind == "latency":
        facts = {"kind": row.kind, "model": plain(model), "rounds": settings.rounds, "budget": row.budget}
    if row.recipe is not None:
        facts |= {
            "recipe_sha256": recipe_digest(recipe_of(row)),
            "calibration_seed": row.seed,
            "calibrated_for": row.calibrated_for,
            "calibration_steps": steps_of(row.calibrated_for, settings),
        }
    return facts


def steps_of(sampler: str, settings: Settings) -> int:
    """Return the steps of a sampler, ``ddim`` or ``dpm``."""
    return settings.fast_steps if sampler == "dpm" else settings.steps


def path_of(row: Row, settings: Settings) -> Path:
    """Return the file of a row."""
    return settings.results / row.section / f"{row.name}.json"


def differences(row: Row, model: Model, settings: Settings) -> list[str] | None:
    """Return the protocol keys in which the row's file differs from what is asked; None where there is no file."""
    file = path_of(row, settings)
    if not file.exists():
        return None
    there, wanted = json.loads(file.read_text(encoding="utf-8"))["protocol"], protocol(row, model, settings)
    return [key for key in sorted({*there, *wanted}) if there.get(key) != wanted.get(key)]


def refresh_labels(row: Row, settings: Settings) -> None:
    """Bring the labels of a row that is there up to date: they say what it stands for, not what was measured."""
    file = path_of(row, settings)
    content = json.loads(file.read_text(encoding="utf-8"))
    if content["labels"] != row.labels:
        write_atomically(file, readable({**content, "labels": row.labels}))


def write(row: Row, model: Model, settings: Settings, metrics: dict[str, Any], seconds: float) -> Path:
    """Write the row's file, wholly or not at all, and return it."""
    recipe = None
    if row.recipe is not None:
        resolved = recipe_of(row)
        recipe = {
            "name": row.recipe,
            "overrides": list(row.overrides),
            "sha256": recipe_digest(resolved),
            "resolved": decisive(resolved),
        }
    content = {
        "schema": SCHEMA,
        "section": row.section,
        "row": row.name,
        "labels": row.labels,
        "protocol": protocol(row, model, settings),
        "seeds": {"calibration": row.seed if recipe else None, "noise": settings.noise},
        "recipe": recipe,
        "budget": row.budget if recipe else None,
        **circumstances(seconds),
        "metrics": metrics,
    }
    file = path_of(row, settings)
    write_atomically(file, readable(content))
    return file
