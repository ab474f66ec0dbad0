"""Only a part of the trajectory: the ablation of which timesteps matter."""

from dataclasses import dataclass
from typing import Literal

import torch

from halftone.calibrate.select_contract import AbstractSelect
from halftone.foundation.bounds import positive


@dataclass(frozen=True)
class Part(AbstractSelect):
    """Evenly from the first (noisy), middle or last (clean) ``share`` of the calls."""

    which: Literal["first", "middle", "last"] = "middle"
    share: float = 0.5

    def __post_init__(self) -> None:
        positive(self, "share", high=1)

    def choose(self, calls: int, count: int, generator: torch.Generator) -> torch.Tensor:
        width = max(1, round(self.share * calls))
        start = {"first": 0, "middle": (calls - width) // 2, "last": calls - width}[self.which]
        return (start + torch.arange(count) % width).sort().values
