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
        # One float copy, in the dtype last asked for. The codes stay to make another one: they cost a byte for each
        # weight, a second float copy two or four.
        prepared: dict[torch.dtype, Prepared] = {}

        def make(dtype: torch.dtype) -> Prepared:
            bias = None if operands.bias is None else operands.bias.to(dtype)
            return float_call(operation, dequantized_weight(operation, operands).to(dtype), bias)

        def run(x: torch.Tensor) -> torch.Tensor:
            call = prepared.get(x.dtype)
            if call is None:
                call = make(x.dtype)
                prepared.clear()
                prepared[x.dtype] = call
            return call(x)

        return run
