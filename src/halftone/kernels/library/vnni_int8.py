"""Integer convolutions and linears on x86 CPUs with AVX512-VNNI, through a loop of our own.

Where oneDNN's operators reach 320 to 890 thousand million operations a second on two Zen 4 threads, this reaches 530 to 890 in the
shapes of a Stable Diffusion U-Net (docs/decisions/0023): it needs no layout that depends on the input's shape, its call costs a
few microseconds, it adds biases, shortcuts and gates before its output is written, and it multiplies with weights that stay in half
a byte.

The same numbers as ``onednn_int8``: uint8 codes, exact sums, float32 after them. Not differentiable.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import ClassVar, Literal

import torch

from halftone.formats.kinds.integer import Integer
from halftone.kernels.centred_weight import span, sums_may_overflow
from halftone.kernels.coded_call import CodedCall
from halftone.kernels.contract import AbstractKernel, Fuses, Grid, HoldsCodes, Operands, Operation, Prepared
from halftone.kernels.input_codes import counting
from halftone.kernels.library.reference import float_call
from halftone.kernels.native import product
from halftone.kernels.native.product import ProductWeight

_NATIVE = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class _Part:
    """One segment's codes and weight."""

    start: int
    stop: int
    grid: Grid
    zero_point: int
    weight: ProductWeight


@dataclass(frozen=True)
class VnniInt8(AbstractKernel):
    """u8 x s8 convolutions and linears; one pass for each segment, accumulated in float32."""

    engine: ClassVar[str] = "torch"
    preference: ClassVar[int] = 30
    arithmetic: ClassVar[Literal["integer", "float", "simulated"]] = "integer"
    tolerance: ClassVar[float] = 1e-5  # as onednn_int8

    def refusal(self, operation: Operation, operands: Operands) -> str | None:
        if operands.codes.device.type != "cpu":
            return f"runs on CPUs, the layer is on {operands.codes.device.type}"
        reason = _shape_refusal(operation, operands) or product.why_none()
        if reason is not None:
            return reason
        if _has_amx() and operands.keep == "ready":
            return "this CPU has AMX, which oneDNN uses"
        ends = span(operation, operands)
        if isinstance(ends, str):
            return ends
        return "sums may exceed 32 bits" if sums_may_overflow(operation, operands, max(-ends[0], ends[1])) else None

    def prepare(self, operation: Operation, operands: Operands) -> Prepared:
        assert operands.input is not None
        shape, codes = (
            operands.codes.shape,
            operands.codes.flatten(2) if operands.codes.ndim > 2 else operands.codes[..., None],
        )
        bias = None if operands.bias is None else operands.bias.float().contiguous()
        nibbles = operands.keep == "packed" and operation.weight_format.bits <= 4
        zeros = operands.weight.zero_point - operation.weight_format.low
        parts = []
        for index, (start, stop) in enumerate(pairwise(accumulate(operation.segments, initial=0))):
            counted, step = counting(operation, operands.input, index), operands.input.scale[index].float()
            scale = operands.weight.scale[index].float() * counted.sign * step
            weight = ProductWeight(codes[:, start:stop], zeros[index], scale, counted.zero_point, nibbles)
            parts.append(_Part(start, stop, counted.grid(), counted.zero_point, weight))

        def empty(x: torch.Tensor) -> torch.Tensor:
            return float_call(operation, torch.empty(shape), bias)(x)

        return (_Whole if len(parts) == 1 else _Product)(operation, parts, bias, shape, empty)


def _shape_refusal(operation: Operation, operands: Operands) -> str | None:
    if operation.input_scale != "static":
        return f"the input scale is {operation.input_scale}, not static"
    if operation.input_format is None or operands.input is None:
        return "the layer's input is float (weight-only)"
    for what, format in (("weight", operation.weight_format), ("input", operation.input_format)):
        if not isinstance(format, Integer) or format.bits > 8:
            return f"{what} format {format.name} is not an integer of up to 8 bits"
    if operation.padding_mode != "zeros":
        return f"padding mode '{operation.padding_mode}'"
    if operation.groups > 1:
        return "a grouped convolution"
    if any(segment % 4 for segment in operation.segments):
        return "input channels that are no multiple of four"
    codes = operands.input.zero_point - operation.input_format.low
    if not bool(((codes >= 0) & (codes < 2**operation.input_format.bits) & (codes == codes.round())).all()):
        return "an input zero point is not on the grid"
    return "the layer has no weights" if operands.codes.numel() == 0 else None


@cache
def _has_amx() -> bool:
    """Whether oneDNN may use AMX here, with which it is the faster one."""
    ask = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(ask and ask()) and product.mask_allows_amx()


def _margins(operation: Operation) -> tuple[int, int, int, int]:
    """Return the padding: top, bottom, left, right."""
    if operation.padding == "valid":
        return 0, 0, 0, 0
    if operation.padding == "same":
        total = [d * (k - 1) for d, k in zip(operation.dilation, operation.kernel_size, strict=True)]
        before = [t // 2 for t in total]
        return before[0], total[0] - before[0], before[1], total[1] - before[1]
    assert not isinstance(operation.padding, str)
    height, width = operation.padding
    return height, height, width, width


def _windows(operation: Operation, margins: tuple[int, int, int, int]) -> list[tuple[int, int]]:
    if operation.kind == "linear":
        return []
    sums = (margins[0] + margins[1], margins[2] + margins[3])
    geometry = zip(sums, operation.dilation, operation.kernel_size, operation.stride, strict=True)
    return [(margin - d * (k - 1) - 1, step) for margin, d, k, step in geometry]


class _Product(CodedCall, HoldsCodes):
    """The call of a layer of any number of segments."""

    def __init__(
        self,
        operation: Operation,
        parts: list[_Part],
        bias: torch.Tensor | None,
        shape: torch.Size,
        empty: Prepared,
    ) -> None:
        margins = _margins(operation)
        super().__init__(operation, parts, None, _windows(operation, margins), empty)
        self.weights, self.bias, self.shape = [part.weight for part in parts], bias, shape
        self.geometry = (operation.kernel_size, operation.stride, operation.dilation, margins)

    def codes(self) -> torch.Tensor:
        """Return the weight's codes, uint8 ``[out, in, *kernel]``."""
        return torch.cat([weight.codes() for weight in self.weights], dim=1).view(self.shape)

    def multiplied(self, codes: Iterable[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        return self._multiplied(codes, dtype, None, self.bias)

    def _multiplied(
        self,
        codes: Iterable[torch.Tensor],
        dtype: torch.dtype,
        added: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        # Several segments are added up in float32.
        kind = dtype if dtype in _NATIVE and len(self.weights) == 1 else torch.float32
        out: torch.Tensor | None = None
        for weight, part in zip(self.weights, codes, strict=True):
            if self.image:
                part = part.contiguous(memory_format=torch.channels_last)
                table, size = product.rows_of((part.shape[0], part.shape[2], part.shape[3]), *self.geometry)
                if out is None:
                    shape = (part.shape[0], self.out, *size)
                    out = torch.empty(shape, dtype=kind, memory_format=torch.channels_last)
                    added = None if added is None else added.to(kind).contiguous(memory_format=torch.channels_last)
            else:
                part, table = part.contiguous(), None
                if out is None:
                    out = torch.empty(*part.shape[:-1], self.out, dtype=kind)
                    added = None if added is None else added.to(kind).contiguous()
            weight.product(part, table, out, bias, added)
            bias, added = None, out
        assert out is not None
        return out if kind is dtype else out.to(dtype)


class _Whole(_Product, Fuses):
    """One segment: its codes may come from elsewhere, and what follows may be done on the way."""

    def __init__(self, operation: Operation, parts: list[_Part], *more: object) -> None:
        super().__init__(operation, parts, *more)  # type: ignore[arg-type]
        self.grid = parts[0].grid

    def from_codes(self, codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self.multiplied((codes,), dtype)

    def fused(
        self,
        codes: torch.Tensor,
        dtype: torch.dtype,
        added: torch.Tensor | None = None,
        shift: torch.Tensor | None = None,
    ) -> torch.Tensor:
        bias = self.bias
        if shift is not None:
            bias = (shift.float() if bias is None else shift.float() + bias).contiguous()
        return self._multiplied((codes,), dtype, added, bias)

    def gated(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor | None:
        return None if self.image else self.weights[0].gated(codes.contiguous(), self.bias, grid)
