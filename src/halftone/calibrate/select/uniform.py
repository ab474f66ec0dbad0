"""Q-Diffusion's sampling: every c-th step, the same trajectories at each (arXiv:2302.04304, Algorithm 1)."""

from dataclasses import dataclass

import torch

from halftone.calibrate.select_contract import AbstractSelect
from halftone.foundation.bounds import at_least


@dataclass(frozen=True)
class Uniform(AbstractSelect):
    """``steps`` call indices spread evenly over the whole trajectory, as many samples from each (the first ones one more)."""

    steps: int = 20

    def __post_init__(self) -> None:
        at_least(self, 1, "steps")

    def choose(self, calls: int, count: int, generator: torch.Generator) -> torch.Tensor:
        kept = min(self.steps, calls, count)
        indices = (torch.arange(kept) * calls) // kept
        return indices[torch.arange(count) % kept].sort().values
