"""What a trace sees of quantized layers and sites: one operator each, which computes nothing and has the right shape.

So a traced graph holds no codes and no float copy of them; :mod:`halftone.engines.openvino.nodes` puts the arithmetic in.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from halftone.nn.attention import AttentionOperands
from halftone.nn.layers import QuantConv2d, QuantizedLayer, quantized_layers

_ABSENT = object()
LAYER, SITE = "halftone::traced_layer", "halftone::traced_site"
torch.library.define(LAYER, "(Tensor x, int number) -> Tensor")
torch.library.define(SITE, "(Tensor x, int number) -> Tensor")


@dataclass
class Standing:
    """What operators stand for, in the order of their numbers.

    Attributes:
        layers: with their paths.
        sites: an attention's operands, the site's name, and the attention's path.
    """

    layers: list[tuple[str, QuantizedLayer]] = field(default_factory=list)
    sites: list[tuple[AttentionOperands, str, str]] = field(default_factory=list)


# An operator knows numbers alone. One trace at a time: PyTorch's tracer is of the process as well.
_now = Standing()
_tracing = threading.Lock()


@torch.library.impl(LAYER, "CPU")
def _layer(x: torch.Tensor, number: int) -> torch.Tensor:
    _, layer = _now.layers[number]
    if not isinstance(layer, QuantConv2d):
        return x.new_zeros(*x.shape[:-1], layer.weight_shape[0])
    like, weight = torch.empty_like(x, device="meta"), torch.empty(layer.weight_shape, dtype=x.dtype, device="meta")
    return x.new_zeros(layer._conv_forward(like, weight, None).shape)


@torch.library.impl(SITE, "CPU")
def _site(x: torch.Tensor, number: int) -> torch.Tensor:
    return x.clone()


@contextmanager
def standing_in(network: nn.Module) -> Iterator[Standing]:
    """Let operators stand in for the quantized layers and attention operands of ``network`` while the context lasts."""
    global _now
    replaced: list[tuple[nn.Module, str, Any]] = []

    def put(module: nn.Module, name: str, value: Any) -> None:
        # On the object, where it hides the class's own.
        replaced.append((module, name, module.__dict__.get(name, _ABSENT)))
        module.__dict__[name] = value

    with _tracing:
        _now = Standing(list(quantized_layers(network)))
        try:
            for number, (_, layer) in enumerate(_now.layers):
                put(layer, "forward", _forward(number))
                # No engine that has loops of its own: what they compute, a graph could not see.
                put(layer, "engine", "simulate")
            for path, module in network.named_modules():
                if isinstance(module, AttentionOperands):
                    put(module, "pass_through", _pass_through(module, path.rpartition(".")[0]))
                    put(module, "prepared", lambda: None)
            yield _now
        finally:
            for module, name, before in reversed(replaced):
                del module.__dict__[name]
                if before is not _ABSENT:
                    module.__dict__[name] = before
            _now = Standing()


def _forward(number: int) -> Callable:
    def forward(x: torch.Tensor, *unused: Any, **also_unused: Any) -> torch.Tensor:
        traced: torch.Tensor = torch.ops.halftone.traced_layer(x, number)
        return traced

    return forward


def _pass_through(operands: AttentionOperands, path: str) -> Callable:
    quantized = [site for site in operands.site_specs if operands.is_quantized(site)]
    numbers = {site: len(_now.sites) + number for number, site in enumerate(quantized)}
    _now.sites += [(operands, site, path) for site in quantized]

    def pass_through(site: str, x: torch.Tensor, dim: int = 1) -> torch.Tensor:
        return torch.ops.halftone.traced_site(x, numbers[site]) if site in numbers else x

    return pass_through
