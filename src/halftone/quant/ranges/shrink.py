"""The shrink search: scale the min-max range down until the rounding-plus-clipping error is least."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from halftone.formats import fake_quantize
from halftone.foundation.bounds import at_least, positive
from halftone.quant.ranges_contract import AbstractRange
from halftone.quant.spec import QuantSpec


@dataclass(frozen=True)
class Shrink(AbstractRange):
    """Q-Diffusion's ``mse`` initialisation, vectorised over groups.

    For i = 0 .. candidates-1 both ends are multiplied by ``1 - step * i`` and the mean of ``|x - x_hat| ** power`` is taken;
    the best factor of each group wins. (LAPQ's exponent 2.4.)

    Attributes:
        at_most: values kept for the search; a deterministic stride thins out longer groups. The range itself is of all values.
    """

    candidates: int = 80
    step: float = 0.01
    power: float = 2.4
    at_most: int = 65536

    def __post_init__(self) -> None:
        at_least(self, 1, "candidates", "at_most")
        at_least(self, 0, "step")
        positive(self, "power")

    def fit(self, batches: Iterable[torch.Tensor], spec: QuantSpec) -> tuple[torch.Tensor, torch.Tensor]:
        kept = [b.float() for b in batches]
        values = torch.cat(kept, dim=1)
        low, high = values.amin(1), values.amax(1)
        if values.shape[1] > self.at_most:
            # Kept extremes matter to the clipping error, so they are put back after thinning.
            values = torch.cat([values[:, :: -(-values.shape[1] // self.at_most)], low[:, None], high[:, None]], dim=1)
        best = torch.full_like(low, torch.inf)
        factor = torch.ones_like(low)
        for i in range(self.candidates):
            f = 1.0 - self.step * i
            affine = spec.affine(low * f, high * f).view(-1, 1)
            error = (values - fake_quantize(values, affine, spec.number_format)).abs_().pow_(self.power).mean(1)
            better = error < best
            best, factor = torch.where(better, error, best), torch.where(better, f, factor)
        return low * factor, high * factor
