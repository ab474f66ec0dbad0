"""Turning a model's linears and convolutions into layers that can hold codes."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from halftone.foundation.errors import MatchError
from halftone.nn import (
    QuantConv2d,
    QuantizedLayer,
    QuantizedResnetBlock2D,
    QuantizedTransformer2DModel,
    QuantizedTransformerBlock,
    QuantLinear,
)
from halftone.nn.attention import can_hold_operands, install_processor

# Exactly these classes: a subclass may compute something else with the same weight.
_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    ResnetBlock2D: QuantizedResnetBlock2D,
    BasicTransformerBlock: QuantizedTransformerBlock,
    Transformer2DModel: QuantizedTransformer2DModel,
}
_BECOMES: dict[type[nn.Module], type[QuantizedLayer]] = {nn.Linear: QuantLinear, nn.Conv2d: QuantConv2d}


def replace_layers(module: nn.Module, paths: Mapping[str, Any] | Iterable[str]) -> dict[str, QuantizedLayer]:
    """Turn the layers at ``paths`` into quantized layers in the float state, and return them by path.

    The layers change their class in place, so that whoever holds one still holds it: parameters are shared rather than
    copied (the meta device included), and hooks, training flag, device, dtype and other names of the same layer stay.
    Layers that are quantized already are left as they are.

    Args:
        module: the model.
        paths: module paths as in ``named_modules``; of a mapping, its keys.

    Raises:
        MatchError: no module at a path, or one that is neither an ``nn.Linear`` nor an ``nn.Conv2d``. Nothing was
            replaced then.
    """
    # Every name of a layer, where a layer has two.
    modules = dict(module.named_modules(remove_duplicate=False))
    found = {path: _replaceable(modules, path) for path in paths}
    replaced: dict[str, QuantizedLayer] = {}
    for path, layer in found.items():
        if not isinstance(layer, QuantizedLayer):
            layer.__class__ = _BECOMES[type(layer)]
            assert isinstance(layer, QuantizedLayer)
            layer._init_quantized()
        replaced[path] = layer
    for block in modules.values():
        if type(block) in _FUSED and any(isinstance(child, QuantizedLayer) for child in block.modules()):
            block.__class__ = _FUSED[type(block)]
        elif can_hold_operands(block) and any(isinstance(child, QuantizedLayer) for child in block.children()):
            install_processor(block)
    return replaced


def _replaceable(modules: dict[str, nn.Module], path: str) -> nn.Module:
    if path not in modules:
        raise MatchError(f"layer '{path}'", "a module of the model", "none", nearest_path(path, modules))
    layer = modules[path]
    if type(layer) in _BECOMES or isinstance(layer, QuantizedLayer):
        return layer
    raise MatchError(f"layer '{path}'", "an nn.Linear or nn.Conv2d", type(layer).__name__)


def nearest_path(path: str, paths: Iterable[str]) -> str:
    """Return ``Did you mean 'x'?`` for the nearest of ``paths``, or nothing: a model has too many to list them."""
    near = difflib.get_close_matches(path[:200], paths, n=1, cutoff=0.6)
    return f"Did you mean '{near[0]}'?" if near else ""
