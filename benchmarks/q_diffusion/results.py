"""Rows read back, and what can be computed from two of them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.q_diffusion.settings import SECTIONS
from halftone.evaluate import paired
from halftone.evaluate.paired import Interval
from halftone.foundation.errors import ArtifactError


@dataclass(frozen=True)
class Result:
    """One row's file."""

    data: dict[str, Any]

    @property
    def name(self) -> str:
        return self.data["row"]

    @property
    def labels(self) -> dict[str, str]:
        return self.data["labels"]

    @property
    def metrics(self) -> dict[str, Any]:
        return self.data["metrics"]

    @property
    def protocol(self) -> dict[str, Any]:
        return self.data["protocol"]

    @property
    def seed(self) -> int | None:
        return self.data["seeds"]["calibration"]

    @property
    def distribution(self) -> dict[str, Any] | None:
        return (self.metrics.get("evaluation") or {}).get("distribution")

    @property
    def paired(self) -> dict[str, Any] | None:
        return (self.metrics.get("evaluation") or {}).get("paired")

    @cached_property
    def errors(self) -> np.ndarray:
        """Squared errors of the samples that were kept, image by image."""
        return np.asarray(self.metrics["image_mse"])


Section = dict[str, Result]


def read(folder: Path) -> dict[str, Section]:
    """Return the rows by section and name, those of the study's sections only.

    Raises:
        ArtifactError: a file that is not a row's.
    """
    found: dict[str, Section] = {}
    for section in SECTIONS:
        for file in sorted((folder / section).glob("*.json")):
            try:
                row = Result(json.loads(file.read_text(encoding="utf-8")))
                found.setdefault(section, {})[row.name] = row
            except (ValueError, KeyError, TypeError) as error:
                raise ArtifactError(str(file), "a row of the study", str(error), "Delete it; measure again.") from error
    return found


def pick(section: Section, **labels: str) -> Result | None:
    """Return the first row with these labels (and no others asked about), or None."""
    return next((row for row in section.values() if all(row.labels.get(k) == v for k, v in labels.items())), None)


def comparable(a: Result | None, b: Result | None) -> bool:
    """Whether two rows were drawn from the same noise through the same sampler, beside the same float model."""
    if a is None or b is None or "image_mse" not in a.metrics or "image_mse" not in b.metrics:
        return False
    keys = ("model", "sampler", "steps", "noise_seed")
    return all(a.protocol[key] == b.protocol[key] for key in keys)


def change(a: Result, b: Result) -> Interval:
    """Return by what share of ``b``'s paired error that of ``a`` is higher, with its interval: redrawn pair by pair."""
    count = min(len(a.errors), len(b.errors))
    return _ratio(a.errors[:count], b.errors[:count], lambda ratio: ratio - 1)


def removed(a: Result, b: Result) -> Interval:
    """Return the share of ``b``'s paired error that ``a`` does not have. (The float model's is 0, so all of it is excess.)

    Where both rows have more samples than they keep errors of, all count: the bounds are then those of ``a``'s own error, the more
    uncertain one by far, held against ``b``'s mean.
    """
    whole = [(row.paired or {}).get("mse") for row in (a, b)]
    same = a.protocol.get("samples") == b.protocol.get("samples") and len(a.errors) < a.protocol.get("samples", 0)
    if same and all(whole):
        mine, theirs = whole[0], float(whole[1]["value"])
        return Interval(1 - mine["value"] / theirs, 1 - mine["high"] / theirs, 1 - mine["low"] / theirs)
    count = min(len(a.errors), len(b.errors))
    return _ratio(a.errors[:count], b.errors[:count], lambda ratio: 1 - ratio)


def gain(a: Result, b: Result) -> Interval:
    """Return by how many dB the images of ``a`` are closer to the float model's than those of ``b``, the mean over pairs.

    Every image counts the same here, while a few that went astray may decide the pooled error.
    """
    count = min(len(a.errors), len(b.errors))
    closer = 10 * np.log10(np.maximum(b.errors[:count], 1e-12) / np.maximum(a.errors[:count], 1e-12))
    return paired.interval(closer, seed=0)


def _ratio(a: np.ndarray, b: np.ndarray, function: Callable[[float], float], draws: int = 2000) -> Interval:
    random, ratios = np.random.default_rng(0), []
    for _ in range(draws):
        chosen = random.integers(0, len(a), len(a))
        ratios.append(a[chosen].mean() / max(b[chosen].mean(), 1e-30))
    low, high = sorted(function(float(q)) for q in np.quantile(ratios, [0.025, 0.975]))
    return Interval(function(float(a.mean() / max(b.mean(), 1e-30))), low, high)


def over_seeds(rows: list[Result]) -> tuple[float, float, int] | None:
    """Return mean and standard deviation of the PSNR over calibration seeds, and how many; each on the same samples."""
    count = min((len(row.errors) for row in rows), default=0)
    if len(rows) < 2 or not count:
        return None
    values = [paired.decibels(float(row.errors[:count].mean())) for row in rows]
    return float(np.mean(values)), float(np.std(values, ddof=1)), len(values)
