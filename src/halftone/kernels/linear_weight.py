"""The int8 weight of a linear, for inputs of few rows and of many."""

import torch

from halftone.kernels.native import loops
from halftone.kernels.onednn import operator

_ROWS = 16
# Products. Above, oneDNN's blocking is worth what its call costs: 0.1 ms, however small the matrix.
_PRODUCTS = 2**22


class LinearWeight:
    """A weight that stays plain, for a loop of its own, while all inputs have few rows; the first one with more has it packed.

    Time embeddings have a row for each sample, and a denoiser multiplies them in every residual block.

    Args:
        weight: int8 ``[out, in]``, code minus zero point.
        scale: float32 ``[out]``, of the products.
        zero_point: of the input's codes.
    """

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, zero_point: int) -> None:
        self.outputs, self.width = weight.shape
        self._plain: torch.Tensor | None = weight.contiguous()
        self._packed: torch.Tensor | None = None
        self._scale = scale
        # What the zero point adds to every sum; taken off again in integers.
        self._offset = weight.sum(1, dtype=torch.int32) * zero_point

    def __call__(self, shape: torch.Size) -> torch.Tensor:
        """Return the weight packed for oneDNN, whatever the shape of the codes."""
        plain = self._plain
        if self._packed is None and plain is not None:
            # In this order, as other threads may be here: at every moment one of the two is there.
            self._packed = operator("qlinear_prepack")(plain, None)
            self._plain = None
        assert self._packed is not None
        return self._packed

    def product(self, codes: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
        """Return the output, float32, for codes of few rows, or None where oneDNN is to compute it.

        Which of the two computes depends on the number of rows alone, not on what was computed before: their last bits differ.

        Args:
            bias: float32 ``[out]`` or None.
        """
        rows = codes.numel() // self.width
        if rows > _ROWS or rows * self.width * self.outputs > _PRODUCTS:
            return None
        weight = self._plain
        if weight is None:
            # Rare: a layer that has had many rows. Unpacked each time, rather than kept beside the packed one.
            weight = self(codes.shape).to_dense().t().contiguous()
        return loops.few_rows(codes, weight, self._offset, self._scale, bias)
