"""The record of a row: one JSON file that says what was measured, how, on what and with which code."""

import hashlib
import json
import math
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import diffusers

from benchmarks.q_diffusion.plan import Row
from benchmarks.q_diffusion.settings import ROOT, Settings
from halftone.foundation.build import plain
from halftone.foundation.files import write_atomically
from halftone.kernels.machine import machine
from halftone.recipes import Recipe, load

SCHEMA = 1
# What changes a model; a title or an expectation does not.
_DECISIVE = ("policy", "steps", "calibration")


@dataclass(frozen=True)
class Model:
    """The float model of a study: what it is called and the digest of its denoiser's weights."""

    name: str
    sha256: str


def recipe_of(row: Row) -> Recipe:
    """Return the row's resolved recipe."""
    assert row.recipe is not None
    return load(row.recipe, row.budget, list(row.overrides))


def recipe_digest(recipe: Recipe) -> str:
    """Return a digest of what a recipe does: two recipes with equal digests make equal models."""
    data = {key: value for key, value in plain(recipe).items() if key in _DECISIVE}
    return digest_of(data)


def digest_of(data: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of JSON-safe data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


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
        write_atomically(file, _readable({**content, "labels": row.labels}))


def write(row: Row, model: Model, settings: Settings, metrics: dict[str, Any], seconds: float) -> Path:
    """Write the row's file, wholly or not at all, and return it."""
    recipe = None
    if row.recipe is not None:
        resolved = recipe_of(row)
        recipe = {
            "name": row.recipe,
            "overrides": list(row.overrides),
            "sha256": recipe_digest(resolved),
            "resolved": {key: value for key, value in plain(resolved).items() if key in _DECISIVE},
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
        "machine": {**machine(), "diffusers": diffusers.__version__, "python": platform.python_version()},
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "commit": commit(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "metrics": metrics,
    }
    file = path_of(row, settings)
    write_atomically(file, _readable(_finite(content)))
    return file


def _readable(content: dict[str, Any]) -> str:
    """Return indented JSON with every list of numbers on one line: a difference between two versions can be read."""
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False)
    return re.sub(r"\[[-\d.eE+,\s]+\]", lambda found: re.sub(r"\s+", " ", found[0]), text) + "\n"


def _finite(value: Any) -> Any:
    """Return ``value`` with infinite numbers as text, which JSON has no numbers for (the PSNR of equal images)."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "infinity" if value > 0 else str(value)
    return value


def commit() -> dict[str, Any]:
    """Return the commit of the code, and whether anything but results differed from it."""
    sha = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", "src", "benchmarks", ":(exclude,glob)benchmarks/*/results/**")
    return {"sha": sha, "dirty": None if sha is None else bool(changed)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
