"""How wrong the denoiser as a whole is: what a unit's own error does not tell."""

import torch

from halftone.calibrate.trajectory import Trajectory
from halftone.calibrate.walk import outputs
from halftone.methods.importance import Importance
from halftone.models.precision import as_float
from halftone.models.quant_model import QuantModel

DENOISER = "(denoiser)"  # its path in reports


class OutputError:
    """How far the quantized denoiser's output is from the float one's, on the same inputs: mean square over calibration samples.

    A sample counts as much as an error of its call shows in the image, where the calibration has measured that.

    Args:
        rows: int64 ``[n]``, which samples.
        batch: samples a forward for the float model's answers, which are computed here and kept.
    """

    path = DENOISER

    def __init__(self, model: QuantModel, data: Trajectory, rows: torch.Tensor, batch: int) -> None:
        self.module, self.data, self.rows = model.module, data, rows
        self.importance = Importance(len(rows), None if data.weights is None else data.weights[rows])
        with torch.no_grad(), model.in_float():
            self.targets = torch.cat([self._answer(index) for index in torch.arange(len(rows)).split(batch)])

    def loss(self, index: torch.Tensor) -> torch.Tensor:
        """Return the error over the rows at ``index`` ``[b]``, drawn by their importance: gradients flow through it."""
        return self.importance.mean(self._squares(index), index)

    def mean(self, batch: int) -> float:
        """Return the error over all rows, summed in float64, ``batch`` of them a forward."""
        total = weight = 0.0
        with torch.no_grad():
            for index in torch.arange(len(self.rows)).split(batch):
                part, counted = self.importance.sum(self._squares(index).double(), index)
                total, weight = total + part, weight + counted
        return total / weight

    def _answer(self, index: torch.Tensor) -> torch.Tensor:
        args, kwargs = as_float(self.data.rows(self.rows[index]))
        return outputs(self.module(*args, **kwargs))[0].float()

    def _squares(self, index: torch.Tensor) -> torch.Tensor:
        return (self._answer(index) - self.targets[index]).square()
