"""The definition: fake-quantized input, dequantized weight, float32 arithmetic."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch.nn import functional as F

from halftone.formats import dequantize, fake_quantize
from halftone.formats.segments import along_input, along_weight
from halftone.foundation.errors import KernelError
from halftone.kernels.contract import AbstractKernel, Operands, Operation, Prepared


def dequantized_weight(operation: Operation, operands: Operands) -> torch.Tensor:
    """Return the float32 weight ``[out, in / groups, *kernel]`` that the codes stand for."""
    affine = along_weight(operands.weight, operation.segments, operands.codes.ndim)
    return dequantize(operands.codes, affine, operation.weight_format)


def float_function(operation: Operation) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]:
    """Return the plain float layer ``(x, weight, bias) -> y``, all in the dtype of ``x``."""
    if operation.kind == "linear":
        return F.linear
    # A module, because it knows every padding mode.
    conv = torch.nn.Conv2d(
        operation.in_channels,
        operation.out_channels,
        operation.kernel_size,
        operation.stride,
        operation.padding,
        operation.dilation,
        operation.groups,
        bias=False,
        padding_mode=operation.padding_mode,
        device="meta",
    )
    return conv._conv_forward


def float_call(operation: Operation, weight: torch.Tensor, bias: torch.Tensor | None) -> Prepared:
    """Return the plain float layer ``x -> y`` with ``weight``."""
    run = float_function(operation)
    return lambda x: run(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


@dataclass(frozen=True)
class Reference(AbstractKernel):
    """Runs everywhere and serves every layer; slow, and what the other kernels are compared with."""

    engine: ClassVar[str] = "simulate"
    preference: ClassVar[int] = 0
    arithmetic: ClassVar[Literal["integer", "float", "simulated"]] = "simulated"
    tolerance: ClassVar[float] = 0.0

    def refusal(self, operation: Operation, operands: Operands) -> str | None:
        return None

    def prepare(self, operation: Operation, operands: Operands) -> Prepared:
        if operation.input_scale != "static":
            raise KernelError("reference", "a static input scale", f"{operation.input_scale}, not built yet")
        call = float_call(operation, dequantized_weight(operation, operands), operands.bias)
        if operands.input is None or operation.input_format is None:
            return lambda x: call(x.float()).to(x.dtype)
        affine, grid, dim = operands.input, operation.input_format, -1 if operation.kind == "linear" else 1

        def run(x: torch.Tensor) -> torch.Tensor:
            return call(fake_quantize(x.float(), along_input(affine, operation.segments, x.ndim, dim), grid)).to(
                x.dtype
            )

        return run
