"""The arguments of a network's call as named tensors, and what else was said: a graph has tensors only."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from halftone.foundation.errors import KernelError

_TIME = "timestep"  # given as a plain number, as a tensor without axes, or with one


@dataclass(frozen=True)
class Signature:
    """What calls must have in common to run the same graph.

    Attributes:
        names: of the tensors, such as ``sample`` or ``added_cond_kwargs.time_ids``.
        dtypes, shapes: of the tensors.
        spec: how they lie in the arguments.
        constants: the leaves that are no tensors, by their places.
    """

    names: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    shapes: tuple[tuple[int, ...], ...]
    spec: Any
    constants: tuple[tuple[int, Any], ...]

    def arguments(self, tensors: tuple[torch.Tensor, ...]) -> dict[str, Any]:
        """Return the keyword arguments with ``tensors`` in their places."""
        leaves: list[Any] = [None] * self.spec.num_leaves
        taken = dict(self.constants)
        given = iter(tensors)
        for place in range(len(leaves)):
            leaves[place] = taken[place] if place in taken else next(given)
        arguments: dict[str, Any] = pytree.tree_unflatten(leaves, self.spec)
        return arguments


def read(forward: Callable, args: tuple, kwargs: Mapping[str, Any]) -> tuple[Signature, tuple[torch.Tensor, ...]]:
    """Return the signature of a call of ``forward`` and its tensors.

    Raises:
        KernelError: an argument that is neither a tensor nor plain data.
    """
    given = dict(inspect.signature(forward).bind(*args, **kwargs).arguments)
    given |= given.pop("kwargs", {})
    if isinstance(given.get(_TIME), int | float):
        given[_TIME] = torch.tensor(given[_TIME])
    if isinstance(given.get(_TIME), torch.Tensor) and given[_TIME].ndim == 0:
        # As diffusers' networks do it first of all: so all three are one kind of call.
        given[_TIME] = given[_TIME].view(1)
    leaves, spec = pytree.tree_flatten_with_path(given)
    names, tensors, constants = [], [], []
    for place, (path, leaf) in enumerate(leaves):
        name = ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
        if isinstance(leaf, torch.Tensor):
            names.append(name)
            tensors.append(leaf)
        elif leaf is None or isinstance(leaf, bool | int | float | str):
            constants.append((place, leaf))
        else:
            fix = "Use --engine torch, which runs the module itself."
            raise KernelError(f"argument '{name}'", "a tensor, a number or a word", type(leaf).__name__, fix)
    shapes = tuple(tuple(tensor.shape) for tensor in tensors)
    dtypes = tuple(tensor.dtype for tensor in tensors)
    return Signature(tuple(names), dtypes, shapes, spec, tuple(constants)), tuple(tensors)
