"""Weight-only layers: the weight is unpacked once, then the plain float layer runs in the input's dtype."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from halftone.kernels.contract import AbstractKernel, Operands, Operation, Prepared
from halftone.kernels.library.reference import dequantized_weight, float_call


@dataclass(frozen=True)
class FloatWeight(AbstractKernel):
    """Float arithmetic is what a weight-only layer is defined by, so nothing is simulated here."""

    engine: ClassVar[str] = "torch"
    preference: ClassVar[int] = 10
    arithmetic: ClassVar[Literal["integer", "float", "simulated"]] = "float"
    # The very call of the reference in float32. In bfloat16 or float16 the weight is rounded to that dtype, as that of
    # any float model is, and the dtype's own precision is the bound.
    tolerance: ClassVar[float] = 1e-6

    def refusal(self, operation: Operation, operands: Operands) -> str | None:
        if operation.input_scale != "static":
            return f"the input scale is {operation.input_scale}, not static"
        if operation.input_format is not None or operands.input is not None:
            return "the layer's input is quantized"
        return None

    def prepare(self, operation: Operation, operands: Operands) -> Prepared:
        return _Unpacked(operation, operands)


class _Unpacked:
    """The call, with one float copy of the weight, in the dtype last asked for.

    The codes stay to make another one: they cost a byte for each weight, a second float copy two or four.
    """

    def __init__(self, operation: Operation, operands: Operands) -> None:
        self.operation, self.operands = operation, operands
        self.dtype: torch.dtype | None = None
        self.call: Prepared

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling() or self.dtype is not x.dtype:
            self._unpack(x.dtype)
        return self.call(x)

    # A compiler runs this while it traces: its graph takes the float weight, and does not make it at each call.
    @torch.compiler.assume_constant_result
    def _unpack(self, dtype: torch.dtype) -> None:
        if self.dtype is dtype:
            return
        bias = None if self.operands.bias is None else self.operands.bias.to(dtype)
        weight = dequantized_weight(self.operation, self.operands).to(dtype)
        self.call, self.dtype = float_call(self.operation, weight, bias), dtype
