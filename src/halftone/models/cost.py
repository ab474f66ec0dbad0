"""What one call of a denoiser costs, counted on the meta device: multiply-accumulates, numbers written, functions called, memory.

Nothing is computed and no weight is read, so a model of any size is counted in seconds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from halftone.models.roles import QUANTIZABLE, Architecture
from halftone.models.tape import Tape, record, slots

FLOAT_BYTES = 4
_PRODUCTS = ("matmul", "__matmul__", "bmm", "baddbmm")
_ATTENTION = "scaled_dot_product_attention"


@dataclass(frozen=True)
class Work:
    """What is to be computed.

    Attributes:
        macs: multiply-accumulates of linears, 2-D convolutions, matrix products and attention.
        elements: numbers that all functions write.
        calls: functions called.
    """

    macs: float = 0.0
    elements: float = 0.0
    calls: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.macs + other.macs, self.elements + other.elements, self.calls + other.calls)

    def times(self, factor: float) -> "Work":
        return Work(self.macs * factor, self.elements * factor, self.calls * factor)

    def over(self, samples: int, batch: int) -> "Work":
        """Return the work of ``samples`` samples, ``batch`` in a call, from that of one."""
        return Work(self.macs * samples, self.elements * samples, self.calls * math.ceil(samples / batch))


@dataclass(frozen=True)
class LayerCost:
    """One linear or convolution as a matrix product of one sample: ``[rows, columns] x [columns, out]`` in each group."""

    path: str
    weights: int
    columns: int
    groups: int
    rows: int
    has_bias: bool


@dataclass(frozen=True)
class UnitCost:
    """One reconstruction unit, of one sample.

    Attributes:
        scores: elements of its attentions' score matrices, which exist only where the operands of attention are simulated.
        largest: elements of the largest tensor that it makes, score matrices left out.
        largest_scores: elements of its largest score matrix.
    """

    path: str
    work: Work
    layers: tuple[LayerCost, ...]
    scores: int
    largest: int
    largest_scores: int

    @property
    def weights(self) -> int:
        return sum(layer.weights for layer in self.layers)


@dataclass(frozen=True)
class ModelCost:
    """A denoiser's call with one sample.

    Attributes:
        units: in execution order.
        glue: what is computed between them.
        input_bytes: of one sample's inputs.
        stream_bytes: the most that a walk holds of one sample at a time, in one of its streams.
    """

    units: tuple[UnitCost, ...]
    glue: Work
    input_bytes: int
    stream_bytes: int

    @property
    def forward(self) -> Work:
        return sum((unit.work for unit in self.units), self.glue)

    @property
    def scores(self) -> int:
        return sum(unit.scores for unit in self.units)


def count(model: nn.Module, found: Architecture, args: tuple, kwargs: dict) -> ModelCost:
    """Return what ``model(*args, **kwargs)`` costs; the model and its inputs, of one sample, are on the meta device.

    Raises:
        CalibrationError: the forward branches on tensor values.
    """
    tape = record(model, found.is_unit, args, kwargs)
    counter = _Counter(tape.units())
    hooks = counter.watch(model)
    try:
        with torch.no_grad(), counter:
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    units = tuple(replace(counter.unit(path), path=path) for path in dict.fromkeys(tape.units()))
    given = sum(tape.shapes[index].numel() for index in slots((tape.args, tape.kwargs)))
    return ModelCost(units, counter.work[""], FLOAT_BYTES * given, _most_held(tape))


def _most_held(tape: Tape) -> int:
    """Return the most bytes that are alive at once when the tape is replayed entry by entry."""
    alive = set(slots((tape.args, tape.kwargs)))
    most = 0
    for entry in tape.entries:
        alive |= set(slots(entry.out))
        most = max(most, sum(tape.shapes[index].numel() for index in alive))
        alive -= set(entry.last_used)
    return FLOAT_BYTES * most


class _Counter(TorchFunctionMode):
    """Counts what runs inside each unit; the path of what runs outside is ''."""

    def __init__(self, units: list[str]) -> None:
        super().__init__()
        self.units = set(units)
        self.inside: list[str] = [""]
        self.work = dict.fromkeys(["", *units], Work())
        self.layers: dict[str, dict[str, LayerCost]] = {path: {} for path in self.work}
        self.sizes = {path: {"scores": 0, "largest": 0, "largest_scores": 0} for path in self.work}

    def watch(self, model: nn.Module) -> list[Any]:
        """Follow the model into its units and layers; return the hooks."""
        hooks: list[Any] = []
        for path, module in model.named_modules():
            if path in self.units:
                hooks.append(module.register_forward_pre_hook(lambda m, a, path=path: self.inside.append(path)))
                hooks.append(
                    module.register_forward_hook(lambda m, a, out: self.inside.pop() and None, always_call=True)
                )
            if isinstance(module, QUANTIZABLE):
                # Before the hook that leaves a unit: a layer may be one.
                hooks.append(module.register_forward_hook(self._layer(path), prepend=True))
        return hooks

    def unit(self, path: str) -> UnitCost:
        return UnitCost(path, self.work[path], tuple(self.layers[path].values()), **self.sizes[path])

    def _layer(self, path: str) -> Callable:
        def hook(module: Any, args: tuple, out: torch.Tensor) -> None:
            weight = module.weight
            rows = out.numel() // weight.shape[0]
            groups = getattr(module, "groups", 1)
            facts = LayerCost(path, weight.numel(), weight[0].numel(), groups, rows, module.bias is not None)
            self.layers[self.inside[-1]][path] = facts

        return hook

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        if made and not func.__name__.startswith("__get__"):
            where, name = self.inside[-1], func.__name__
            written = sum(tensor.numel() for tensor in made)
            macs, sizes = 0, self.sizes[where]
            if name in ("linear", "conv2d"):
                macs = written * _argument(args, kwargs, 1, "weight")[0].numel()
            elif name in _PRODUCTS:
                macs = written * args[1 if name == "baddbmm" else 0].shape[-1]
            elif name == _ATTENTION:
                query, key = _argument(args, kwargs, 0, "query"), _argument(args, kwargs, 1, "key")
                scores = query.numel() // query.shape[-1] * key.shape[-2]
                macs = 2 * scores * query.shape[-1]
                sizes["scores"] += scores
                sizes["largest_scores"] = max(sizes["largest_scores"], scores)
            sizes["largest"] = max(sizes["largest"], written)
            self.work[where] += Work(macs, written, 1)
        return out


def _argument(args: tuple, kwargs: dict | None, place: int, name: str) -> torch.Tensor:
    found: torch.Tensor = args[place] if len(args) > place else (kwargs or {})[name]
    return found
