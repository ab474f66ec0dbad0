"""A network with quantized layers as an OpenVINO graph."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import openvino as ov
import torch
from openvino import PartialShape
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch import ConversionExtension
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import nn
from torch.utils import _pytree as pytree

from halftone.engines.openvino.nodes import Nodes
from halftone.engines.openvino.signature import Signature
from halftone.engines.openvino.standins import LAYER, SITE, Standing, standing_in
from halftone.foundation.errors import HalftoneError, KernelError

_PARTS = 3  # of a linear's output; more are few channels each, as of the modulations of transformers
# Networks whose operators do not depend on image size and batch, as long as the sizes can be halved as often as they are.
_FREE = ("UNet2DModel", "UNet2DConditionModel")


@dataclass(frozen=True)
class General:
    """A kind of calls that one graph serves.

    Attributes:
        shapes: of the inputs, -1 where any size will do.
        rest: what else of the signature the graph depends on.
    """

    shapes: tuple[tuple[int, ...], ...]
    rest: Signature


def free_sizes(network: nn.Module, signature: Signature) -> General:
    """Return the kind of calls that a call of ``signature`` belongs to: in general its own shapes alone."""
    shapes = signature.shapes
    if any(base.__name__ in _FREE for base in type(network).__mro__):
        halved = sum(getattr(block, "upsamplers", None) is not None for block in network.up_blocks)  # type: ignore[union-attr]
        sizes = signature.shapes[signature.names.index("sample")][2:]
        if all(size % 2**halved == 0 for size in sizes):
            shapes = tuple(_free(shape) for shape in shapes)
    return General(shapes, replace(signature, shapes=shapes))


def _free(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an input with any batch, image size or number of tokens."""
    free = {4: (0, 2, 3), 3: (0, 1)}.get(len(shape), (0,))
    return tuple(-1 if axis in free else size for axis, size in enumerate(shape))


@dataclass
class Graph:
    """An OpenVINO model and how a call's result lies in its outputs.

    Attributes:
        paths: of the quantized layers; their products are nodes of the same names.
        result: the tree of what the network returns.
        constants: leaves of it that are no tensors, by their places.
        largest: of the integer weights.
        held: what the model shares memory with.
    """

    model: ov.Model
    paths: frozenset[str]
    result: Any
    constants: dict[int, Any]
    largest: int
    held: list[Any]

    def returned(self, tensors: list[torch.Tensor]) -> Any:
        """Return ``tensors`` as the network returns them."""
        given = iter(tensors)
        leaves = [
            self.constants[place] if place in self.constants else next(given) for place in range(self.result.num_leaves)
        ]
        return pytree.tree_unflatten(leaves, self.result)


class _Traced(nn.Module):
    """The network as a function of tensors alone."""

    def __init__(self, network: nn.Module, forward: Callable, signature: Signature) -> None:
        super().__init__()
        self.network, self.call, self.signature = network, forward, signature
        self.result: Any = None
        self.constants: dict[int, Any] = {}

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves, self.result = pytree.tree_flatten(self.call(**self.signature.arguments(tensors)))
        self.constants = {n: leaf for n, leaf in enumerate(leaves) if not isinstance(leaf, torch.Tensor)}
        return tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))


def export(
    network: nn.Module,
    forward: Callable,
    signature: Signature,
    tensors: tuple[torch.Tensor, ...],
    shapes: tuple[tuple[int, ...], ...] | None = None,
) -> Graph:
    """Return the graph of ``forward``, a method of ``network``.

    Args:
        signature, tensors: of a call.
        shapes: what the graph takes (-1: any size); None for those of the call.

    Raises:
        KernelError: PyTorch cannot trace the network, or OpenVINO has no counterpart of one of its operators.
    """
    traced = _Traced(network, forward, signature)
    try:
        with standing_in(network) as standing, torch.no_grad(), warnings.catch_warnings():
            # Of constants that it takes from shapes, which a graph is for, and of the tracer's age: OpenVINO has no other door yet.
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            script = torch.jit.trace(traced, tensors, strict=False, check_trace=False)
            nodes = Nodes()
            model = _converted(script, standing, nodes)
            paths = frozenset(path for path, _ in standing.layers)
    except HalftoneError:
        raise
    except Exception as error:  # whatever the tracer, the network and the frontend raise
        lines = str(error).strip().splitlines() or [""]
        got = f"{type(error).__name__}: {lines[0][:300]}"
        raise KernelError(
            type(network).__name__, "a network that OpenVINO can convert", got, "Use --engine torch."
        ) from error
    for port, name, shape in zip(model.inputs, signature.names, shapes or signature.shapes, strict=True):
        port.tensor.set_names({name})
        port.node.set_friendly_name(name)
        port.node.set_partial_shape(PartialShape(list(shape)))
    model.validate_nodes_and_infer_types()
    # For whoever compiles the exported file: by default OpenVINO rounds the inputs of linears whose weights alone are quantized.
    model.set_rt_info("0", ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
    return Graph(model, paths, traced.result, traced.constants, nodes.largest, nodes.held)


def _converted(script: Any, standing: Standing, nodes: Nodes) -> ov.Model:
    def layer(context: Any) -> list[ov.Output]:
        path, module = standing.layers[int(context.get_values_from_const_input(1))]
        return [nodes.layer(context.get_input(0), module, path)]

    def site(context: Any) -> list[ov.Output]:
        operands, name, path = standing.sites[int(context.get_values_from_const_input(1))]
        affine, spec = operands.site_affine(name), operands.site_specs[name]
        assert affine is not None
        return [nodes.site(context.get_input(0), affine, spec.number_format, f"{path}.{name}")]

    frontend = FrontEndManager().load_by_framework("pytorch")
    frontend.add_extension(ConversionExtension(LAYER, layer))
    frontend.add_extension(ConversionExtension(SITE, site))
    decoder = TorchScriptPythonDecoder(script)  # by a name: the frontend does not keep it alive
    model = frontend.convert(frontend.load(decoder))
    _multiply_in_parts(model, nodes)
    return model


def _multiply_in_parts(model: ov.Model, nodes: Nodes) -> None:
    """Let linears whose output is split at once put out the parts: GEGLU's, which is two linears by nature.

    OpenVINO's split copies, and keeps the activation behind it out of the product.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() not in ("Split", "VariadicSplit"):
            continue
        whole = node.input(0).get_source_output()
        made = nodes.linears.get(whole.get_node().get_name())
        sizes = [_channels(part) for part in node.outputs()]
        # Beside the split itself only what asks for the shape, to know where to cut.
        readers = [each.get_node() for each in whole.get_target_inputs()]
        alone = all(each.get_type_name() in (node.get_type_name(), "ShapeOf") for each in readers)
        if made is not None and alone and len(sizes) <= _PARTS and sum(sizes) == _channels(whole):
            for part, product in zip(node.outputs(), nodes.in_parts(*made, sizes), strict=True):
                part.replace(product)


def _channels(value: ov.Output) -> int:
    """Return the size of the last axis, 0 where it is not known."""
    shape = value.get_partial_shape()
    last = shape[shape.rank.get_length() - 1] if shape.rank.is_static and shape.rank.get_length() else None
    return int(last.get_length()) if last is not None and last.is_static else 0
