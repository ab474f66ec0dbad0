"""Walk a model block by block, carrying activations from one block to the next.

For every reconstruction unit, in execution order, :class:`Walk` yields the inputs the unit sees in the float model and in the model
quantized so far, and the float outputs. The method changes the unit; the walk then moves on with what the changed unit puts out.
Nothing is computed twice: the prefix of the network is never run again, as Q-Diffusion's code does for every unit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from halftone.calibrate.store import Store
from halftone.calibrate.trajectory import Trajectory
from halftone.foundation.errors import CalibrationError
from halftone.models.denoiser import refuse_cache
from halftone.models.precision import as_float
from halftone.models.quant_model import QuantModel
from halftone.models.sample_axis import sample_axis
from halftone.models.tape import Entry, Slot, fill, pairs, record

Environment = dict[int, torch.Tensor]
FLOAT, QUANTIZED = 0, 1


@dataclass
class Unit:
    """One reconstruction unit with its data.

    Attributes:
        path, module: the unit.
        layers: paths of the planned layers at or inside it.
        calls: by stream, one ``(args, kwargs)`` per batch. ``FLOAT`` is what the float model feeds it, ``QUANTIZED`` what the model
            quantized so far does.
        targets: one output tree per batch, of the float unit on float inputs.
        batch: samples in each.
        steps: int64 ``[N]``, the index of the denoiser call (0 = noisiest) that each sample comes from.
        batched: for each leaf of a call and its target whether its first axis is that of the samples; None when they are elsewhere.
        weights: float32 ``[N]``, what each sample's error counts; None where all count the same.
        device: where the unit is. Activations may lie elsewhere: those that were spilled lie in files.
    """

    path: str
    module: nn.Module
    layers: list[str]
    calls: tuple[list[tuple[tuple, dict]], list[tuple[tuple, dict]]]
    targets: list[Any]
    batch: int
    steps: torch.Tensor
    batched: list[bool | None]
    weights: torch.Tensor | None = None
    device: torch.device | None = None

    def __len__(self) -> int:
        return len(self.targets) * self.batch

    def call(self, stream: int, batch: int) -> tuple[tuple, dict]:
        """Return ``(args, kwargs)`` of one batch, in float32, for the unit to be called with."""
        ready: tuple[tuple, dict] = as_float(self.calls[stream][batch], self.device)
        return ready

    def minibatch(self, stream: int, index: torch.Tensor) -> tuple[tuple, dict, list[torch.Tensor]]:
        """Return ``(args, kwargs, targets)`` for the samples at ``index`` ``[b]``, in float32; targets as :func:`outputs`.

        Raises:
            CalibrationError: a tensor of the unit does not have one row a sample.
        """
        where = [(int(i) // self.batch, int(i) % self.batch) for i in index]
        trees = [(self.calls[stream][b], self.targets[b]) for b, _ in where]
        joined = []
        for has, *column in zip(self.batched, *map(pytree.tree_leaves, trees), strict=True):
            if has is None:
                shape = tuple(column[0].shape)
                expected = "inputs and outputs with one row a sample along their first axis"
                raise CalibrationError(self.path, expected, f"{shape} for {self.batch} samples")
            joined.append(
                torch.stack([leaf[row] for leaf, (_, row) in zip(column, where, strict=True)]) if has else column[0]
            )
        (args, kwargs), target = as_float(pytree.tree_unflatten(joined, pytree.tree_structure(trees[0])), self.device)
        return args, kwargs, outputs(target)


def outputs(tree: Any) -> list[torch.Tensor]:
    """Return the floating tensors of an output tree in order: what a unit's error is measured on."""
    leaves = pytree.tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


class Walk:
    """Iterate over the units of ``model`` in execution order.

    Args:
        data: the calibration samples; all of them are carried along.
        batch: samples a forward.
        store: keeps the activations.
        quantized: also carry the stream of the model as quantized so far. Without it ``Unit.calls[QUANTIZED]`` is the float one.
    """

    def __init__(self, model: QuantModel, data: Trajectory, batch: int, store: Store, quantized: bool = True) -> None:
        refuse_cache(model.module)
        self.model, self.store, self.batch = model, store, min(batch, len(data))
        self.indices = data.batches(self.batch)
        self.device = next(model.module.parameters()).device
        self.data = data
        self.streams = (FLOAT, QUANTIZED) if quantized else (FLOAT,)
        self.steps = data.calls[torch.cat(self.indices)]
        self.weights = None if data.weights is None else data.weights[torch.cat(self.indices)]
        index = self.indices[0]
        other = index[1:] if self.batch > 1 else index.repeat(2)
        with model.in_float():
            self.tape, again = (
                record(model.module, model.architecture.is_unit, *data.rows(rows)) for rows in (index, other)
            )
        self.axis = sample_axis(self.tape, self.batch, again, len(other))
        for entry, twin in zip(self.tape.entries, again.entries, strict=True):
            # The lesser of two: what the first call waits for, such as memory of the system's, says nothing about later ones.
            entry.seconds = min(entry.seconds, twin.seconds * self.batch / len(other))

    def __len__(self) -> int:
        return len(self.tape.units())

    @property
    def seconds(self) -> list[float]:
        """What each unit took in float, one batch: how long one takes relative to the others."""
        return [entry.seconds for entry in self.tape.entries if entry.is_unit]

    def __iter__(self) -> Iterator[Unit]:
        environments: list[list[Environment]] = [[] for _ in self.indices]
        visited: set[str] = set()
        for b, index in enumerate(self.indices):
            start = dict(pairs((self.tape.args, self.tape.kwargs), self.data.rows(index)))
            environments[b] = [dict(start) for _ in self.streams]
        for entry in self.tape.entries:
            if entry.is_unit:
                yield from self._unit(entry, environments, visited)
            else:
                with torch.no_grad():
                    for batch in environments:
                        self._glue(entry, batch)
            for batch in environments:
                self._forget(entry, batch)
        self._check(environments)

    def _glue(self, entry: Entry, batch: list[Environment]) -> None:
        done: dict[tuple, Any] = {}
        for environment in batch:
            read = tuple(id(environment[i]) for i in sorted(entry.reads()))
            if read not in done:  # both streams are one until the first quantized unit
                args, kwargs = as_float(fill((entry.args, entry.kwargs), environment.__getitem__), self.device)
                out = entry.target(*args, **kwargs)  # type: ignore[operator]
                done[read] = {i: self.store.keep(value) for i, value in pairs(entry.out, out)}
            environment.update(done[read])

    def _unit(self, entry: Entry, environments: list[list[Environment]], visited: set[str]) -> Iterator[Unit]:
        path = str(entry.target)
        module = self.model.module.get_submodule(path)
        calls: list[list[tuple[tuple, dict]]] = [
            [fill((entry.args, entry.kwargs), batch[stream].__getitem__) for batch in environments]
            for stream in self.streams
        ]
        kept = []
        with torch.no_grad(), self.model.in_float(path):
            for batch, call in zip(environments, calls[FLOAT], strict=True):
                # Kept one by one: only the store may hold a whole data set's outputs.
                values = {i: self.store.keep(value) for i, value in pairs(entry.out, self._run(module, call))}
                batch[FLOAT].update(values)
                kept.append(fill(entry.out, values.__getitem__))
        last = calls[-1]
        layers = [layer for layer in self.model.layers_in(path) if layer not in visited]
        # A unit that is called again (DiT's first block lends its embedding to the head) was decided the first time.
        if path not in visited and (layers or not self.model.layers_in(path)):
            visited.update((path, *layers))
            leaves = pytree.tree_leaves(((entry.args, entry.kwargs), entry.out))
            batched = [self.axis.of(leaf.index) if isinstance(leaf, Slot) else False for leaf in leaves]
            streams = (calls[FLOAT], last)
            yield Unit(path, module, layers, streams, kept, self.batch, self.steps, batched, self.weights, self.device)
        if QUANTIZED in self.streams:
            with torch.no_grad():
                for batch, call in zip(environments, calls[QUANTIZED], strict=True):
                    out = self._run(module, call)
                    batch[QUANTIZED].update({i: self.store.keep(value) for i, value in pairs(entry.out, out)})
        for layer in self.model.layers_in(path):
            # The walk does not come back: what the layer has prepared, a float weight here, is not to pile up to a second model.
            self.model.layer(layer).refresh()

    def _run(self, module: nn.Module, call: tuple[tuple, dict]) -> Any:
        args, kwargs = as_float(call, self.device)
        return module(*args, **kwargs)

    def _forget(self, entry: Entry, batch: list[Environment]) -> None:
        for index in entry.last_used:
            gone = {id(e[index]): e.pop(index) for e in batch if index in e}
            for tensor in gone.values():
                self.store.release(tensor)

    def _check(self, environments: list[list[Environment]]) -> None:
        for batch in environments:
            for environment in batch:
                for value in environment.values():
                    if value.is_floating_point() and not torch.isfinite(value).all():
                        raise CalibrationError("walk", "finite outputs", "NaN or infinity")
