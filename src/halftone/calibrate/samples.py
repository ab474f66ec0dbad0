"""Which inputs of a denoiser call have samples: those that grow when the pipeline is asked for more of them.

Lengths alone do not tell. Flux's ``img_ids`` are ``[tokens, 3]`` without a batch axis, and there may be as many tokens as samples.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.utils import _pytree as pytree

from halftone.calibrate.sampling import last_step, quiet, run_steps
from halftone.foundation.errors import CalibrationError


class Stop(Exception):
    """Raised by a hook on the denoiser once it has seen what it wanted."""


def sample_leaves(
    pipe: DiffusionPipeline,
    network: nn.Module,
    steps: int,
    one: Mapping[str, Any],
    two: Mapping[str, Any] | None,
) -> tuple[bool, ...]:
    """Return for each leaf of the ``(args, kwargs)`` with which ``pipe`` calls its ``network`` whether it has samples.

    A single number, such as the timestep of the whole batch, counts as one that has them: it changes from call to call.

    Args:
        one, two: the pipeline's arguments for one sample and for two. None for a pipeline that is to make one at a time: then all
            inputs have samples that are as long as the first floating one, or the first of all.

    Raises:
        CalibrationError: an input that follows the number of samples in another way than along its first axis.
    """
    small = _first_call(pipe, network, steps, one)
    if two is None:
        long = [leaf for leaf in pytree.tree_leaves(small) if _is_long(leaf)]
        if not long:
            raise CalibrationError("calibration", "inputs with an axis of samples", "numbers alone")
        # A text encoder has token ids alone.
        rows = next((leaf for leaf in long if leaf.is_floating_point()), long[0]).shape[0]
        return tuple(
            is_number(leaf) or (_is_long(leaf) and leaf.shape[0] == rows) for leaf in pytree.tree_leaves(small)
        )
    large = _first_call(pipe, network, steps, two)
    expected = "inputs whose first axis is that of the samples"
    if pytree.tree_structure(small) != pytree.tree_structure(large):
        raise CalibrationError("calibration", expected, "other inputs for two samples than for one")
    found = []
    for (path, leaf), more in zip(pytree.tree_leaves_with_path(small), pytree.tree_leaves(large), strict=True):
        grows = isinstance(leaf, torch.Tensor) and leaf.shape != more.shape
        if grows and more.shape != (2 * leaf.shape[0], *leaf.shape[1:]):
            got = f"{tuple(leaf.shape)} for one sample and {tuple(more.shape)} for two at {pytree.keystr(path)}"
            raise CalibrationError("calibration", expected, got)
        found.append(grows or is_number(leaf))
    return tuple(found)


def is_number(leaf: Any) -> bool:
    """Return whether the leaf is one number for all samples."""
    return isinstance(leaf, torch.Tensor) and leaf.numel() == 1 and leaf.ndim <= 1


def _is_long(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.ndim > 0


def _first_call(
    pipe: DiffusionPipeline, network: nn.Module, steps: int, arguments: Mapping[str, Any]
) -> tuple[tuple, dict]:
    """Return the inputs of the network's first call; the pipeline is stopped there."""
    seen: list[tuple[tuple, dict]] = []

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append((args, kwargs))
        raise Stop

    handle = network.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with quiet(pipe), last_step(pipe.scheduler), torch.no_grad(), contextlib.suppress(Stop):
            run_steps(pipe, steps, arguments, network)
    finally:
        handle.remove()
    if not seen:
        raise CalibrationError("calibration", f"calls of the {type(network).__name__}", "none")
    return seen[0]
