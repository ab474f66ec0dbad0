"""A tape of one denoiser call: the reconstruction units in execution order and the glue between them.

Walking a U-Net block by block needs its shortcuts, concatenations and embeddings without running the prefix again, and without a
fork of the model's code. So one call is recorded at the level of torch functions, with whole units (a residual block, an
attention) as single opaque entries; replaying the tape needs each value only until its last use.

The tape is valid for any inputs of the recorded shapes as long as the glue does not branch on values; :func:`record` proves that by
refusing glue that turns tensors into Python numbers, and by replaying the call it has just recorded.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from halftone.foundation.errors import CalibrationError

# Functions that carry a tensor's value into Python, where the tape cannot follow.
_TO_PYTHON = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__")


@dataclass(frozen=True)
class Slot:
    """The place of one tensor on the tape."""

    index: int


@dataclass
class Entry:
    """One call: a torch function, or the unit at a module path.

    ``args``, ``kwargs`` and ``out`` are trees with :class:`Slot` in place of the tape's tensors. ``last_used`` lists the slots that
    nobody reads after this entry; ``seconds`` is what the last :func:`replay` took for it, where that was on the CPU.
    """

    target: Callable | str
    args: tuple
    kwargs: dict
    out: Any
    last_used: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_unit(self) -> bool:
        return isinstance(self.target, str)

    def reads(self) -> set[int]:
        return set(slots((self.args, self.kwargs)))


@dataclass
class Tape:
    """Entries in execution order, with the trees of slots of the call's inputs and output, and the shape of each slot's tensor."""

    args: tuple
    kwargs: dict
    entries: list[Entry]
    output: Any
    shapes: list[torch.Size]

    def units(self) -> list[str]:
        """Return the module paths of the units in execution order."""
        return [str(entry.target) for entry in self.entries if entry.is_unit]


def slots(tree: Any) -> Iterator[int]:
    """Yield the indices of all slots in a tree."""
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Slot):
            yield leaf.index


def fill(tree: Any, values: Callable[[int], torch.Tensor]) -> Any:
    """Return ``tree`` with every slot replaced by its tensor."""
    return pytree.tree_map(lambda leaf: values(leaf.index) if isinstance(leaf, Slot) else leaf, tree)


def pairs(pattern: Any, value: Any) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield ``(slot index, tensor)`` for each slot of ``pattern`` and the tensor in its place in ``value``."""
    for leaf, tensor in zip(pytree.tree_leaves(pattern), pytree.tree_leaves(value), strict=True):
        if isinstance(leaf, Slot):
            yield leaf.index, tensor


class _Recorder(TorchFunctionMode):
    """Records glue functions; unit hooks tell it when to look away."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = 0
        self.entries: list[Entry] = []
        self.known: dict[int, int] = {}
        self.alive: list[torch.Tensor] = []  # ids stay unique only while the tensors live

    def slot(self, tensor: torch.Tensor) -> Slot:
        self.alive.append(tensor)
        self.known[id(tensor)] = len(self.alive) - 1
        return Slot(len(self.alive) - 1)

    def seen(self, tree: Any) -> Any:
        """Return the tree with tensors of the tape replaced by slots; others (weights, constants) stay themselves."""
        return pytree.tree_map(
            lambda leaf: (
                Slot(self.known[id(leaf)]) if isinstance(leaf, torch.Tensor) and id(leaf) in self.known else leaf
            ),
            tree,
        )

    def note(self, target: Callable | str, args: tuple, kwargs: dict, out: Any) -> None:
        seen_args, seen_kwargs = self.seen((args, kwargs))
        new = pytree.tree_map(lambda leaf: self.slot(leaf) if isinstance(leaf, torch.Tensor) else leaf, out)
        self.entries.append(Entry(target, seen_args, seen_kwargs, new))

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.inside:
            return out
        if any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(out)):
            self.note(func, args, kwargs, out)
        elif func.__name__ in _TO_PYTHON and any(isinstance(a, torch.Tensor) and id(a) in self.known for a in args):
            expected = "a denoiser whose forward does not branch on tensor values"
            raise CalibrationError("walk", expected, f"a call of Tensor.{func.__name__}")
        return out


def record(model: nn.Module, is_unit: Callable[[str, nn.Module], bool], args: tuple, kwargs: dict) -> Tape:
    """Record ``model(*args, **kwargs)``; modules for which ``is_unit(path, module)`` holds become units (outermost only).

    Raises:
        CalibrationError: the forward branches on tensor values, or replaying the tape gives another output.
    """
    recorder = _Recorder()
    hooks = []

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        recorder.inside += 1

    def leave(path: str) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
            recorder.inside -= 1
            if not recorder.inside:
                recorder.note(path, args, kwargs, out)

        return hook

    for path, module in model.named_modules():
        if path and is_unit(path, module):
            hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            hooks.append(module.register_forward_hook(leave(path), with_kwargs=True))
    as_slots = lambda tree: pytree.tree_map(lambda x: recorder.slot(x) if isinstance(x, torch.Tensor) else x, tree)  # noqa: E731
    try:
        in_args, in_kwargs = as_slots(args), as_slots(kwargs)
        with torch.no_grad(), recorder:
            output = model(*args, **kwargs)
        shapes = [tensor.shape for tensor in recorder.alive]
        tape = Tape(in_args, in_kwargs, recorder.entries, recorder.seen(output), shapes)
    finally:
        for hook in hooks:
            hook.remove()
    _mark_last_uses(tape)
    if any(leaf.is_meta for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)):
        return tape  # shapes only: there are no numbers that a replay could miss
    again = replay(tape, model, args, kwargs)
    for mine, theirs in zip(pytree.tree_leaves(again), pytree.tree_leaves(output), strict=True):
        if isinstance(theirs, torch.Tensor) and not torch.equal(mine, theirs):
            raise CalibrationError("walk", "a forward whose replay gives the same output", "a different one")
    return tape


def _mark_last_uses(tape: Tape) -> None:
    needed = set(slots(tape.output))
    for entry in reversed(tape.entries):
        mentioned = entry.reads() | set(slots(entry.out))
        entry.last_used = sorted(mentioned - needed)
        needed |= entry.reads()


def replay(tape: Tape, model: nn.Module, args: tuple, kwargs: dict) -> Any:
    """Return the output of the recorded call for other inputs of the same shapes."""
    values = dict(pairs((tape.args, tape.kwargs), (args, kwargs)))
    with torch.no_grad():
        for entry in tape.entries:
            target = model.get_submodule(entry.target) if isinstance(entry.target, str) else entry.target
            began = time.perf_counter()
            out = target(*fill(entry.args, values.__getitem__), **fill(entry.kwargs, values.__getitem__))
            entry.seconds = time.perf_counter() - began
            values.update(pairs(entry.out, out))
            for index in entry.last_used:
                values.pop(index, None)
    return fill(tape.output, values.__getitem__)
