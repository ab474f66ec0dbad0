"""A quantized layer as nodes of an OpenVINO graph, in the form that its low-precision transformations take to 8-bit operators.

``FakeQuantize`` with 256 levels in front, and an int8 constant that is converted and multiplied by its scales: the plugin then
multiplies uint8 by int8, folds the zero point into the sums, and lets a layer put out codes where only quantized layers read them.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import openvino as ov
import torch
from openvino import Node, Output, Type
from openvino import opset13 as ops

from halftone.formats import AbstractFormat, Affine
from halftone.formats.kinds.integer import Integer
from halftone.foundation.errors import KernelError
from halftone.kernels import Operands, Operation
from halftone.kernels.centred_weight import centred, span
from halftone.nn.layers import QuantizedLayer, QuantLinear

SEGMENT = "#"  # between a layer's path and the number of a segment, in the names of nodes
_LEVELS = 256
# Packed codes that OpenVINO lays out as we do, by their bits, and integers that hold code and zero point.
_SHARED = {4: (Type.u4, Type.i8), 8: (Type.u8, Type.i16)}
_PADDINGS = {"reflect": "reflect", "replicate": "edge"}


@dataclass
class Nodes:
    """Makes the nodes of one graph; equal quantizations of one tensor are made once.

    Attributes:
        held: arrays whose memory constants of the graph share, and which must live as long as it does.
        largest: of the integer weights.
        linears: what plain linears were made of, by the names of the nodes that put their outputs out.
    """

    held: list[np.ndarray] = field(default_factory=list)
    largest: int = 0
    linears: dict[str, tuple[Output, QuantizedLayer, str]] = field(default_factory=dict)
    _made: dict[tuple, Output] = field(default_factory=dict)

    def layer(self, x: Output, layer: QuantizedLayer, path: str) -> Output:
        """Return what ``layer`` makes of ``x``."""
        operation, operands = layer.operation(), layer.operands()
        kept = layer.kept if isinstance(layer, QuantLinear) else 0
        own, rest = x.get_element_type(), _as(x, Type.f32)
        if kept:
            rest = _from(rest, kept)
        packed = layer.weight.detach()
        total = self._sum(rest, operation, operands, packed if len(operation.segments) == 1 else None, path)
        if kept:
            total = _with_kept(x, total, layer)
        elif operation.kind == "linear" and own == Type.f32:
            self.linears[total.get_node().get_name()] = (x, layer, path)
        return _as(total, own)

    def in_parts(self, x: Output, layer: QuantizedLayer, path: str, sizes: list[int]) -> list[Output]:
        """Return the output of the linear ``layer`` in consecutive parts of its channels, each a product of its own."""
        operation, operands, made, start = layer.operation(), layer.operands(), [], 0
        for number, size in enumerate(sizes):
            rows = slice(start, start + size)
            affine = Affine(operands.weight.scale[:, rows], operands.weight.zero_point[:, rows])
            bias = None if operands.bias is None else operands.bias[rows]
            part = Operands(operands.codes[rows], affine, operands.input, bias)
            packed = layer.weight.detach()[rows] if len(operation.segments) == 1 else None
            made.append(self._sum(x, replace(operation, out_channels=size), part, packed, f"{path}{SEGMENT}{number}"))
            start += size
        return made

    def _sum(
        self, x: Output, operation: Operation, operands: Operands, packed: torch.Tensor | None, path: str
    ) -> Output:
        """Return the products of the segments and the bias, added.

        Args:
            packed: the codes as the layer holds them, for the graph to share; None: they cannot be shared.
        """
        total: Output | None = None
        start = 0
        for number, (size, part) in enumerate(zip(operation.segments, self._parts(x, operation), strict=True)):
            if operands.input is not None and operation.input_format is not None:
                part = self.quantized(part, _segment(operands.input, number), operation.input_format, path)
            weight = self._weight(*_cut(operation, operands, number, start, size), packed)
            product = _product(part, weight, operation)
            product.set_friendly_name(path if number == 0 else f"{path}{SEGMENT}{number}")
            total = product.output(0) if total is None else ops.add(total, product).output(0)
            start += size
        assert total is not None
        if operands.bias is None:
            return total
        bias = operands.bias.float().view(-1, *[1] * (operands.codes.ndim - 2)).numpy()
        return ops.add(total, ops.constant(bias), name=f"{path}{SEGMENT}bias").output(0)

    def quantized(self, x: Output, affine: Affine, number_format: AbstractFormat, path: str) -> Output:
        """Return ``x`` on the grid; ``affine`` is of the whole tensor.

        Below 8 bits the ends are clamped first, so that an 8-bit grid of the same steps serves.
        """
        if not isinstance(number_format, Integer):
            raise KernelError(path, "an integer input", number_format.name, "Use --engine simulate.")
        scale, zero = float(affine.scale), float(affine.zero_point)
        key = (x.get_node().get_name(), x.get_index(), scale, zero, number_format)
        if key not in self._made:
            low, high = ((end - zero) * scale for end in (number_format.low, number_format.high))
            levels = 2**number_format.bits
            if levels < _LEVELS:
                x, levels = ops.clamp(x, low, high).output(0), _LEVELS
                high = low + (_LEVELS - 1) * scale
            ends = [ops.constant(np.array(end, np.float32)) for end in (low, high)]
            node = ops.fake_quantize(x, *ends, *ends, levels)
            self._made[key] = node.output(0)
        return self._made[key]

    def site(self, x: Output, affine: Affine, number_format: AbstractFormat, path: str) -> Output:
        """Return an attention's operand as it leaves its site."""
        own = x.get_element_type()
        return _as(self.quantized(_as(x, Type.f32), affine, number_format, path), own)

    def _weight(self, operation: Operation, operands: Operands, packed: torch.Tensor | None) -> Output:
        """Return the float weight as the graph holds it: integers, converted and multiplied by the scale of each output channel."""
        column = [-1, *[1] * (operands.codes.ndim - 1)]
        zero = _grouped((operands.weight.zero_point[0] - operation.weight_format.low).view(column), operation)
        bits = operation.weight_format.bits
        reach = span(operation, operands)
        if not isinstance(reach, str):
            self.largest = max(self.largest, -reach[0], reach[1])
        if isinstance(reach, str):
            # A ninth bit: right, and the plugin decides whether it multiplies integers.
            codes = ops.convert(ops.constant(_grouped(operands.codes, operation).numpy()), Type.f32)
            levels = ops.subtract(codes, ops.constant(zero.numpy()))
        elif packed is not None and bits in _SHARED and operands.codes[0].numel() * bits % 8 == 0:
            # The plugin computes these integers once, when it compiles; files keep the codes, four bits where they have four.
            element, wide = _SHARED[bits]
            array = packed.contiguous().numpy()
            self.held.append(array)
            shape = list(_grouped(operands.codes, operation).shape)
            codes = ops.convert(ops.constant(ov.Tensor(array, ov.Shape(shape), element)), wide)
            levels = ops.subtract(codes, ops.constant(zero.numpy().astype(wide.to_dtype())))
            levels = ops.convert(levels if wide == Type.i8 else ops.convert(levels, Type.i8), Type.f32)
        else:
            levels = ops.convert(ops.constant(_grouped(centred(operation, operands), operation).numpy()), Type.f32)
        scale = _grouped(operands.weight.scale[0].view(column), operation)
        return ops.multiply(levels, ops.constant(scale.numpy())).output(0)

    @staticmethod
    def _parts(x: Output, operation: Operation) -> list[Output]:
        """Return the input's segments: where ``x`` is their concatenation, what it was made of."""
        sizes = list(operation.segments)
        if len(sizes) == 1:
            return [x]
        axis = 1 if operation.kind == "conv2d" else -1
        node = x.get_node()
        own = x.get_partial_shape()
        if node.get_type_name() == "Concat" and own.rank.is_static:
            place = axis % own.rank.get_length()
            parts = [value.get_source_output() for value in node.inputs()]
            widths = [part.get_partial_shape()[place] for part in parts]
            concatenated = node.get_attributes()["axis"] % own.rank.get_length()
            if concatenated == place and [each.get_length() if each.is_static else -1 for each in widths] == sizes:
                return parts
        split = ops.variadic_split(x, ops.constant(np.array(axis, np.int64)), ops.constant(np.array(sizes, np.int64)))
        return list(split.outputs())


def _segment(affine: Affine, number: int) -> Affine:
    return Affine(affine.scale[number], affine.zero_point[number])


def _cut(operation: Operation, operands: Operands, number: int, start: int, size: int) -> tuple[Operation, Operands]:
    """Return one segment of a layer as a layer of its own, without bias."""
    if len(operation.segments) == 1:
        return operation, operands
    affine = Affine(operands.weight.scale[number : number + 1], operands.weight.zero_point[number : number + 1])
    codes = operands.codes[:, start : start + size]
    return replace(operation, in_channels=size, segments=(size,)), Operands(codes, affine, None, None)


def _grouped(values: torch.Tensor, operation: Operation) -> torch.Tensor:
    """Return ``[out, ...]`` as ``[groups, out / groups, ...]`` where the operation has groups."""
    return values.unflatten(0, (operation.groups, -1)) if operation.groups > 1 else values


def _product(x: Output, weight: Output, operation: Operation) -> Node:
    if operation.kind == "linear":
        return ops.matmul(x, weight, False, True)
    begin, end = _padding(operation)
    if operation.padding_mode != "zeros":
        if operation.padding_mode not in _PADDINGS:
            known = "zeros, reflect or replicate"
            raise KernelError("openvino", f"padding by {known}", operation.padding_mode, "Use --engine torch.")
        pads = [ops.constant(np.array([0, 0, *pad], np.int64)) for pad in (begin, end)]
        x = ops.pad(x, *pads, _PADDINGS[operation.padding_mode]).output(0)
        begin = end = [0, 0]
    convolution = ops.group_convolution if operation.groups > 1 else ops.convolution
    return convolution(x, weight, list(operation.stride), begin, end, list(operation.dilation))


def _padding(operation: Operation) -> tuple[list[int], list[int]]:
    """Return what is padded before and after, as PyTorch does: of an odd sum the greater half comes after."""
    if operation.padding == "valid":
        return [0, 0], [0, 0]
    if operation.padding == "same":
        sums = [d * (k - 1) for d, k in zip(operation.dilation, operation.kernel_size, strict=True)]
        return [each // 2 for each in sums], [each - each // 2 for each in sums]
    assert not isinstance(operation.padding, str)
    return list(operation.padding), list(operation.padding)


def _as(x: Output, element: Type) -> Output:
    return x if x.get_element_type() == element else ops.convert(x, element).output(0)


def _from(x: Output, first: int) -> Output:
    """Return the tokens of ``x`` ``[..., tokens, channels]`` from ``first`` on."""
    begin, end, step, axis = (ops.constant(np.array([value], np.int64)) for value in (first, 2**31 - 1, 1, -2))
    return ops.slice(x, begin, end, step, axis).output(0)


def _with_kept(x: Output, rest: Output, layer: QuantizedLayer) -> Output:
    """Return the stored outputs of the first tokens and ``rest``, for the batch of ``x``."""
    kept = layer.kept_output.numpy()
    rank = len(x.get_partial_shape())
    shape = ops.shape_of(x, "i64")
    lead = ops.slice(shape, *(ops.constant(np.array([value], np.int64)) for value in (0, rank - 2, 1, 0)))
    target = ops.concat([lead, ops.constant(np.array(kept.shape, np.int64))], 0)
    first = ops.broadcast(ops.constant(kept), target)
    return ops.concat([first, rest], -2).output(0)
