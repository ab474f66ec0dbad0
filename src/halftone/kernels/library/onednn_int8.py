"""Integer convolutions and linears on x86 CPUs, through the oneDNN operators that PyTorch ships.

Inputs become uint8, weights are int8 (code minus zero point), sums are int32; each output channel is scaled at the end.
Inputs of 9 to 16 bits become two bytes: the product is the low bytes' plus 256 times the high bytes', each exact.

Traps of these operators: int8 inputs fall to a reference path thousands of times slower, so codes are always unsigned;
the best layout of a convolution's weight depends on the input's *shape*, and one in another layout is silently
reordered at every call; a linear drops empty axes from its output's shape; and on CPUs without VNNI pairs of products
saturate at 16 bits, so wide weights are refused there.

Not differentiable: the output is detached from the input.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch.nn import functional as F

from halftone.formats.kinds.integer import Integer
from halftone.foundation.errors import KernelError
from halftone.kernels.centred_weight import centred, span, sums_may_overflow
from halftone.kernels.coded_call import CodedCall
from halftone.kernels.contract import AbstractKernel, Grid, Operands, Operation, Prepared, TakesCodes
from halftone.kernels.input_codes import MAGIC, counting, encode
from halftone.kernels.library.reference import float_call
from halftone.kernels.linear_weight import LinearWeight
from halftone.kernels.onednn import ConvWeight, bfloat16_output, missing, operator

# Two products of a uint8 and an int8 of this size still fit into 16 bits.
_NARROW = 64


@dataclass(frozen=True)
class _Part:
    """One byte of one segment's codes: how it comes out of the input, and its packed weight.

    Attributes:
        grid: of the codes; its factor is one over the input scale, negative when codes are counted from the other end (see
            :func:`_parts`).
        scale, zero_point: of the byte.
        fit: from the shape of the codes to the weight packed for it.
    """

    start: int
    stop: int
    grid: Grid
    scale: float
    zero_point: int
    fit: Callable[[torch.Size], torch.Tensor]
    weight_scale: torch.Tensor

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Return this byte, uint8, of the codes of ``x`` (any float dtype)."""
        return encode(x, self.grid)


@dataclass(frozen=True)
class OnednnInt8(AbstractKernel):
    """u8 x s8 convolutions and linears; one operator call for each byte of each segment, accumulated in float32."""

    engine: ClassVar[str] = "torch"
    preference: ClassVar[int] = 20
    arithmetic: ClassVar[Literal["integer", "float", "simulated"]] = "integer"
    # Integer sums are exact; a few float32 roundings follow (1e-7 each). The rest is the reference's own: its float32
    # sums drift with their length (2e-6 at 3,456 terms), and more where all outputs are small beside their terms.
    tolerance: ClassVar[float] = 1e-5

    def refusal(self, operation: Operation, operands: Operands) -> str | None:
        if operands.codes.device.type != "cpu":
            return f"runs on CPUs, the layer is on {operands.codes.device.type}"
        reason = _shape_refusal(operation, operands) or missing()
        if reason is not None:
            return reason
        ends = span(operation, operands)
        if isinstance(ends, str):
            return ends
        largest = max(-ends[0], ends[1])
        if sums_may_overflow(operation, operands, largest):
            return "sums may exceed 32 bits"
        if not _works(False):
            return "oneDNN int8 operators misbehave on this CPU"
        if largest > _NARROW and not _works(True):
            return f"this CPU saturates products of weights beyond {_NARROW} (no VNNI)"
        return None

    def prepare(self, operation: Operation, operands: Operands) -> Prepared:
        shape = operands.codes.shape
        bias = None if operands.bias is None else operands.bias.float()

        def empty(x: torch.Tensor, operation: Operation = operation) -> torch.Tensor:
            return float_call(operation, torch.empty(shape), bias)(x)

        operation, margins = _resolved_padding(operation)
        ends = span(operation, operands)
        if isinstance(ends, str):
            raise KernelError("onednn_int8", "a layer it does not refuse", ends)
        weight = centred(operation, operands)
        bounds = [sum(operation.segments[:n]) for n in range(len(operation.segments) + 1)]
        parts = [p for i, ends in enumerate(pairwise(bounds)) for p in _parts(operation, operands, weight, i, *ends)]
        first, more = _calls(operation, parts, bias)
        windows = _windows(operation)
        if more:
            return _Split(first, more, operation, parts, margins, windows, empty)
        return (_Coded if margins is None else _Single)(first, bias, operation, parts, margins, windows, empty)


def _shape_refusal(operation: Operation, operands: Operands) -> str | None:
    """Return what about the layer's kind no oneDNN call serves."""
    if operation.input_scale != "static":
        return f"the input scale is {operation.input_scale}, not static"
    if operation.input_format is None or operands.input is None:
        return "the layer's input is float (weight-only)"
    for what, format, most in (("weight", operation.weight_format, 8), ("input", operation.input_format, 16)):
        if not isinstance(format, Integer) or format.bits > most:
            return f"{what} format {format.name} is not an integer of up to {most} bits"
    if operation.padding_mode != "zeros":
        return f"padding mode '{operation.padding_mode}'"
    if len(operation.segments) > 1 and operation.groups > 1:
        return "segments in a grouped convolution"
    if min(operation.segments) == operation.groups and max(operation.stride) > 1:
        # Seen in torch 2.13: wrong sums for every such shape tried, right ones for two channels and more.
        return "a strided convolution of one input channel a group, which oneDNN computes wrongly"
    if operation.kind == "conv2d" and operation.stride[0] == 1 < operation.stride[1]:
        # Seen in torch 2.13: wrong sums, or a dead process, where the output is five pixels high or more and one wide.
        return "a stride along the width alone, with which oneDNN computes narrow outputs wrongly"
    if _margin_only(operation):
        # Seen in torch 2.13: such outputs are left unwritten, or the process dies.
        return "a convolution whose outermost windows see padding only, on which oneDNN fails"
    codes = operands.input.zero_point - operation.input_format.low
    if not bool(((codes >= 0) & (codes < 2**operation.input_format.bits) & (codes == codes.round())).all()):
        return "an input zero point is not on the grid"
    if operands.codes.numel() == 0:
        return "the layer has no weights"
    return None


def _margin_only(operation: Operation) -> bool:
    """Whether some output of the convolution sees nothing but padding."""
    if isinstance(operation.padding, str) or operation.kind == "linear":
        return False
    reach = (d * (k - 1) for d, k in zip(operation.dilation, operation.kernel_size, strict=True))
    return any(margin > r for margin, r in zip(operation.padding, reach, strict=True))


def _parts(
    operation: Operation, operands: Operands, weight: torch.Tensor, index: int, start: int, stop: int
) -> list[_Part]:
    """Return the one or two bytes of segment ``index``, the input channels from ``start`` to ``stop``."""
    assert operands.input is not None and operation.input_format is not None
    counted = counting(operation, operands.input, index)
    scale, top, zero_point = operands.input.scale[index].float(), counted.top, counted.zero_point
    piece = (weight if len(operation.segments) == 1 else weight[:, start:stop]).contiguous()
    weight_scale = (operands.weight.scale[index].float() * counted.sign).contiguous()
    parts = []
    for shift in (0, 8) if top > 255 else (0,):
        # code - zero point = 256 * (high - its zero point) + (low - its zero point), without a remainder.
        step, zero = float(scale) * 2**shift, (zero_point >> shift) & 255
        fit = _fit(operation, piece, weight_scale, step, zero)
        parts.append(_Part(start, stop, counted.grid(shift), step, zero, fit, weight_scale))
    return parts


def _fit(
    operation: Operation, weight: torch.Tensor, weight_scale: torch.Tensor, scale: float, zero_point: int
) -> Callable[[torch.Size], torch.Tensor]:
    """Return the function from the shape of the codes to the packed weight."""
    if operation.kind == "linear":
        return LinearWeight(weight, weight_scale * scale, zero_point)
    dimensions = weight.shape
    geometry = (list(operation.stride), list(operation.padding), list(operation.dilation), operation.groups)

    def pack(plain: torch.Tensor, shape: list[int] | None) -> torch.Tensor:
        return operator("qconv_prepack")(plain.view(dimensions), weight_scale, scale, zero_point, *geometry, shape)

    return ConvWeight(pack, weight).fit


def _resolved_padding(operation: Operation) -> tuple[Operation, list[int] | None]:
    """Return the operation with a pair for padding, and margins (in ``F.pad``'s order) to add to the codes before."""
    if operation.padding == "valid":
        return replace(operation, padding=(0, 0)), None
    if operation.padding != "same":
        return operation, None
    total = [d * (k - 1) for d, k in zip(operation.dilation, operation.kernel_size, strict=True)]
    before = [t // 2 for t in total]
    if all(t % 2 == 0 for t in total):
        return replace(operation, padding=(before[0], before[1])), None
    # The operators pad both ends alike, so uneven margins are added to the codes.
    return replace(operation, padding=(0, 0)), [before[1], total[1] - before[1], before[0], total[0] - before[0]]


def _windows(operation: Operation) -> list[tuple[int, int]]:
    """Return, for each axis of an image, what to add to its length before dividing by the second number, the stride."""
    if operation.kind == "linear":
        return []
    assert not isinstance(operation.padding, str)
    geometry = zip(operation.padding, operation.dilation, operation.kernel_size, operation.stride, strict=True)
    return [(2 * margin - d * (k - 1) - 1, step) for margin, d, k, step in geometry]


_First = Callable[[torch.Tensor, torch.dtype], torch.Tensor]
_More = list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]


def _calls(operation: Operation, parts: list[_Part], bias: torch.Tensor | None) -> tuple[_First, _More]:
    """Return the call of the first segment ``(codes, output dtype)``, and of each further one ``(codes, float32 sum)``.

    A sum is accumulated into, or replaced: the caller must use what is returned.
    """
    # The weight is already centred; the operators accept zeros only.
    zeros = torch.zeros(operation.out_channels, dtype=torch.int32)
    name = "qlinear_pointwise"
    geometry: tuple[Any, ...] = ()
    if operation.kind == "conv2d":
        name = "qconv2d_pointwise"
        geometry = (list(operation.stride), list(operation.padding), list(operation.dilation), operation.groups)
    plain, binary = operator(name), operator(name, "binary")
    # Bound once: attribute lookups are a good part of what eager mode costs.
    head = parts[0]
    scale, zero_point, fit, weight_scale = head.scale, head.zero_point, head.fit, head.weight_scale

    def first(codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        weight = fit(codes.shape)
        rest = (*geometry, 1.0, 0, dtype, "none", [], "")
        return plain(codes, scale, zero_point, weight, weight_scale, zeros, bias, *rest)

    def accumulating(part: _Part) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        affine, own = (part.scale, part.zero_point), (part.weight_scale, zeros)
        tail: tuple[Any, ...] = (*geometry, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "")
        return lambda codes, total: binary(codes, *affine, part.fit(codes.shape), *own, total, None, *tail)

    return first, [accumulating(part) for part in parts[1:]]


class _Single(CodedCall):
    """One byte of one segment."""

    def __init__(self, first: _First, bias: torch.Tensor | None, *more: Any) -> None:
        super().__init__(*more)
        self.first, self.bias = first, bias
        fit = more[1][0].fit
        self.rows = fit if isinstance(fit, LinearWeight) else None
        self.native = (torch.float32, torch.bfloat16) if bfloat16_output() else (torch.float32,)

    def multiplied(self, codes: Iterable[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        (only,) = codes
        few = None if self.rows is None else self.rows.product(only, self.bias)
        if few is not None:
            return few.to(dtype)
        return self.first(only, dtype) if dtype in self.native else self.first(only, torch.float32).to(dtype)


class _Coded(_Single, TakesCodes):
    """One byte of one segment, without margins of its own: its codes may come from elsewhere."""

    def __init__(self, *more: Any) -> None:
        super().__init__(*more)
        self.grid = self.parts[0].grid

    def from_codes(self, codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self.multiplied((codes,), dtype)


class _Split(CodedCall):
    """Several bytes or segments, accumulated in float32."""

    def __init__(self, first: _First, more: _More, *others: Any) -> None:
        super().__init__(*others)
        self.first, self.more = first, more

    def multiplied(self, codes: Iterable[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        rest = iter(codes)
        total = self.first(next(rest), torch.float32)
        for call, part in zip(self.more, rest, strict=True):
            total = call(part, total)
        return total.to(dtype)


@cache
def _works(wide: bool) -> bool:
    """Whether codes, a small convolution and a small linear come out exact here; run once in a process.

    Args:
        wide: with weights up to the ends of int8, instead of up to 64.
    """
    limit = 127 if wide else _NARROW
    draw = torch.Generator("cpu").manual_seed(0)
    weight = torch.randint(0, 2, (24, 20, 3, 3), generator=draw, dtype=torch.int8) * (2 * limit) - limit
    data = torch.randint(0, 2, (1, 20, 5, 5), generator=draw) * 255
    data[0, :, 2] = torch.randint(0, 256, (20, 5), generator=draw)
    operation = Operation("conv2d", 20, 24, (20,), Integer(8, signed=True), Integer(8), (3, 3), padding=(1, 1))
    flat = replace(operation, kind="linear", in_channels=180, segments=(180,), kernel_size=(1, 1), padding=(0, 0))
    rows = F.unfold(data.double(), 3, padding=1)[0].t()
    exact = (data.double() - 2, rows - 2)
    wanted = (F.conv2d(exact[0], weight.double(), padding=1), F.linear(exact[1], weight.double().flatten(1)))
    inputs, weights = (data.float() - 2, rows.float() - 2), (weight, weight.flatten(1))
    for case, x, w, result in zip((operation, flat), inputs, weights, wanted, strict=True):
        ones = torch.ones(24)
        grid = Grid(1.0, MAGIC + 2, 255)
        part = _Part(0, x.shape[1], grid, 1.0, 2, _fit(case, w.contiguous(), ones, 1.0, 2), ones)
        codes = part.encode(x)
        found = _calls(case, [part], None)[0](codes, torch.float32)
        if not (torch.equal(codes.double(), x.double() + 2) and torch.equal(found.double(), result)):
            return False
    return True
