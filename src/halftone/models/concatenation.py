"""Where a layer reads the concatenation of two tensors: the shortcut convolutions of a U-Net's up path."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from halftone.models.precision import as_float, narrow, widen
from halftone.models.roles import QUANTIZABLE


class _CatWatch(TorchFunctionMode):
    """Remembers the channel counts of every tensor made by a concatenation along channels."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[int, tuple[int, ...]] = {}
        self.alive: list[torch.Tensor] = []

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.cat, torch.concat, torch.concatenate):
            tensors = args[0] if args else (kwargs or {})["tensors"]
            dim = args[1] if len(args) > 1 else (kwargs or {}).get("dim", 0)
            axis = 1 if out.ndim == 4 else out.ndim - 1
            if dim % out.ndim == axis:
                self.parts[id(out)] = tuple(t.shape[axis] for t in tensors)
                self.alive.append(out)
        return out


def concatenated_inputs(model: nn.Module, args: tuple, kwargs: dict) -> dict[str, tuple[int, ...]]:
    """Return, for each linear or convolution fed directly by a channel concatenation, the channels of its parts in order.

    One call of the model with ``args``, ``kwargs`` is watched, in float32; nothing is computed from names.
    """
    watch, found, hooks = _CatWatch(), {}, []

    def look(path: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple) -> None:
            if inputs and id(inputs[0]) in watch.parts:
                found[path] = watch.parts[id(inputs[0])]

        return hook

    for path, module in model.named_modules():
        if isinstance(module, QUANTIZABLE):
            hooks.append(module.register_forward_pre_hook(look(path)))
    args, kwargs = as_float((args, kwargs))
    dtypes = widen(model)
    try:
        with torch.no_grad(), watch:
            model(*args, **kwargs)
    finally:
        narrow(model, dtypes)
        for hook in hooks:
            hook.remove()
    return found
