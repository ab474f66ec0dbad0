"""How far a trajectory reaches: the inputs that its calls had, their shapes, and the timesteps between which they lie.

Stored in the artifact, so that a quantized denoiser can tell a call unlike all that it was calibrated on.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

_TIMESTEP = "timestep"  # as diffusers' denoisers call it, all of them


def named_inputs(network: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return a call's tensors by name, however the pipeline passed them; nested ones as ``added_cond_kwargs['text_embeds']``."""
    given = {**dict(zip(_parameters(type(network).forward), args, strict=False)), **kwargs}
    if isinstance(given.get(_TIMESTEP), int | float):
        given[_TIMESTEP] = torch.tensor(given[_TIMESTEP])
    found = {}
    for name, value in given.items():
        for path, leaf in pytree.tree_leaves_with_path(value):
            if isinstance(leaf, torch.Tensor):
                found[name + pytree.keystr(path)] = leaf
    return found


@cache
def _parameters(forward: Callable) -> tuple[str, ...]:
    """Return the names of what a network's forward takes; kept, as every call of a watched network asks."""
    return tuple(inspect.signature(forward).parameters)[1:]


def shapes(inputs: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    """Return the shape of each input without its first axis, which counts samples; empty for a number."""
    return {name: list(leaf.shape[1:]) for name, leaf in inputs.items()}


def timesteps(inputs: Mapping[str, torch.Tensor]) -> dict[str, float] | None:
    """Return the least and the greatest timestep and the mean step between those there are; None where there are none."""
    values = inputs.get(_TIMESTEP)
    if values is None:
        return None
    distinct = values.flatten().double().unique()
    low, high = float(distinct[0]), float(distinct[-1])
    return {"low": low, "high": high, "step": (high - low) / max(len(distinct) - 1, 1)}


def reach(network: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the reach of recorded calls, JSON-safe: ``inputs`` by name and, where there are any, ``timesteps``."""
    inputs = named_inputs(network, args, kwargs)
    times = timesteps(inputs)
    return {"inputs": shapes(inputs), **({} if times is None else {"timesteps": times})}


def beyond(known: Mapping[str, Any], network: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, str]:
    """Return what about a call is unlike the calls of the reach ``known``: a sentence for each such input, none if all are alike.

    A timestep is unlike if it lies more than one step outside. One on an accelerator is not looked at: to ask for its value
    would stop the machine in every call.
    """
    inputs, found = named_inputs(network, args, kwargs), {}
    now, then = shapes(inputs), known["inputs"]
    for name, shape in now.items():
        if name not in then:
            found[name] = f"an input that calibration did not see: {name}"
        elif shape != then[name]:
            found[name] = f"another shape (without the batch): {name} {shape} instead of {then[name]}"
    for name in then:
        if name not in now:
            found[name] = f"nothing for an input that calibration had: {name}"
    times, value = known.get("timesteps"), inputs.get(_TIMESTEP)
    if times and value is not None and value.device.type == "cpu" and value.numel():
        low, high = float(value.min()), float(value.max())
        if low < times["low"] - times["step"] or high > times["high"] + times["step"]:
            outside = low if low < times["low"] - times["step"] else high
            span = f"{times['low']:g} to {times['high']:g}"
            found["timesteps"] = f"timestep {outside:g}, where calibration had {span}"
    return found
