"""Weight-only layers: the plain float layer runs in the input's dtype, with the weight that the codes stand for."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from halftone.formats import pack, unpack
from halftone.kernels.contract import AbstractKernel, HoldsFloat, Operands, Operation, Prepared
from halftone.kernels.library.reference import dequantized_weight, float_function


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
        return _Weight(operation, operands)


class _Weight(HoldsFloat):
    """The call. ``ready``: with one float copy of the weight, in the dtype last asked for. ``packed``: the float weight is made at
    each call, and the codes are all that is held.

    The codes stay, packed, to make another one.
    """

    def __init__(self, operation: Operation, operands: Operands) -> None:
        self.operation, self.numbers, self.shape = operation, operands.weight, operands.codes.shape
        self.packed = pack(operands.codes.flatten(1), operation.weight_format.bits)
        self.bias, self.keep = operands.bias, operands.keep
        self.run = float_function(operation)
        self.weight: torch.Tensor | None = None

    def codes(self) -> torch.Tensor:
        count = torch.Size(self.shape[1:]).numel()
        return unpack(self.packed, self.operation.weight_format.bits, count).view(self.shape)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if torch.compiler.is_compiling():
            return self.run(x, self._constant(x.dtype), bias)
        if self.keep == "packed":
            return self.run(x, self._float(x.dtype), bias)
        self.hold_float(x.dtype)
        assert self.weight is not None
        return self.run(x, self.weight, bias)

    def hold_float(self, dtype: torch.dtype) -> None:
        if self.keep == "ready" and (self.weight is None or self.weight.dtype is not dtype):
            self.weight = self._float(dtype)

    # A compiler runs this while it traces: its graph takes the float weight, and does not make it at each call.
    @torch.compiler.assume_constant_result
    def _constant(self, dtype: torch.dtype) -> torch.Tensor:
        return self._float(dtype)

    def _float(self, dtype: torch.dtype) -> torch.Tensor:
        return dequantized_weight(self.operation, Operands(self.codes(), self.numbers, None, None)).to(dtype)
