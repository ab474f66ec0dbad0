"""Independent, uniformly random steps."""

from dataclasses import dataclass

import torch

from halftone.calibrate.select_contract import AbstractSelect


@dataclass(frozen=True)
class Random(AbstractSelect):
    """Each sample's call is drawn uniformly, with repetition."""

    def choose(self, calls: int, count: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randint(0, calls, (count,), generator=generator).sort().values
