"""A training that is measured on its way: when, and when that ends it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

# A point of a training's curve: step, minutes, loss; where it was measured, also the distance.
Point = dict[str, float]


@dataclass(frozen=True)
class Watch:
    """How a training is measured.

    Attributes:
        name: what the distance is called; less is better.
        measure: returns it for the averaged weights, a state dict that it must not change.
        minutes: training time from one measurement to the next; 0 for none at all.
        patience: measurements in a row that may bring no new best; None for any number.
        protocol: what the card tells of how it was measured, JSON-safe.
    """

    name: str
    measure: Callable[[Mapping[str, torch.Tensor]], float]
    minutes: float = 30.0
    patience: int | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)

    def due(self, seconds: float) -> bool:
        """Whether to measure, ``seconds`` of training time after the last measurement."""
        return self.minutes > 0 and seconds >= 60 * self.minutes

    def exhausted(self, curve: Sequence[Point]) -> bool:
        """Whether the last ``patience`` measurements brought no new best."""
        found = distances(curve)
        if self.patience is None or len(found) <= self.patience:
            return False
        return min(found[-self.patience :]) >= min(found[: -self.patience])

    def facts(self) -> dict[str, Any]:
        """Return what the card tells."""
        return {"name": self.name, "minutes": self.minutes, "patience": self.patience, **self.protocol}


def distances(curve: Sequence[Point]) -> list[float]:
    """Return the distances measured along ``curve``."""
    return [point["distance"] for point in curve if "distance" in point]
