"""How inputs become the uint8 codes that integer kernels multiply."""

from dataclasses import dataclass

import torch

from halftone.formats import Affine
from halftone.kernels.contract import Grid, Operation
from halftone.kernels.native import loops

# Between 2**23 and 2**24 float32 holds exactly the integers, and the low byte of its bits counts them.
MAGIC = 1.5 * 2**23


@dataclass(frozen=True)
class Counting:
    """How the codes of one segment are counted.

    Attributes:
        factor: one over the input scale; negative when codes are counted from the other end (see :func:`counting`).
        top: the greatest code.
        zero_point: the code of zero, even.
        sign: 1 or -1, of the products.
    """

    factor: float
    top: int
    zero_point: int
    sign: int

    def grid(self, shift: int = 0) -> Grid:
        """Return the grid of the codes' low byte, or of the high one (8)."""
        return Grid(self.factor, MAGIC + self.zero_point, self.top, shift)


def counting(operation: Operation, affine: Affine, index: int) -> Counting:
    """Return how the codes of segment ``index`` are counted.

    Adding an odd number would round halves to odd. Counted from the other end an odd zero point is even, as the greatest code is
    odd; the sign goes into the weight's scale.
    """
    assert operation.input_format is not None
    top = 2**operation.input_format.bits - 1
    zero_point = int(affine.zero_point[index] - operation.input_format.low)
    factor = float(affine.scale[index].float().reciprocal())
    return Counting(-factor, top, top - zero_point, -1) if zero_point % 2 else Counting(factor, top, zero_point, 1)


def encode(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return a byte, uint8, of the codes of ``x`` (any float dtype), exactly as ``halftone.formats.affine`` defines them.

    One pass where there are native loops. Without them, four operators: multiply, add, clamp, convert; measured on one core for
    32,768 elements, 17 us. Multiply, round, add, clamp, to(uint8): 33 us (the conversion of float to uint8 is slow);
    ``quantized_decomposed.quantize_per_tensor``: 52 us. ``torch.quantize_per_tensor`` takes 8 us, but it is deprecated, and it
    fuses multiplication and addition: one code in 10**5 is off by one. So would ``torch.add(alpha=)`` be.
    """
    found = loops.encode(x, grid)
    if found is not None:
        return found
    scaled = x.mul(grid.factor) if x.dtype is torch.float32 else x.float().mul_(grid.factor)
    codes = scaled.add_(grid.offset).clamp_(MAGIC, MAGIC + grid.top).view(torch.int32)
    return (codes.bitwise_right_shift_(grid.shift) if grid.shift else codes).to(torch.uint8)
