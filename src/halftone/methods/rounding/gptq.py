"""GPTQ: round the weights column by column and let the columns that are left make up for the error."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import nn

from halftone.calibrate.trajectory import Trajectory
from halftone.calibrate.walk import FLOAT, QUANTIZED, Unit, Walk
from halftone.formats import Affine
from halftone.formats.segments import along_weight
from halftone.foundation.bounds import at_least
from halftone.foundation.errors import CalibrationError
from halftone.foundation.seeds import generator
from halftone.methods.columns import compensated, in_blocks, round_columns
from halftone.methods.contract import AbstractMethod, Run, StepReport
from halftone.methods.effort import Effort, Job, seconds_a_mac, seconds_an_element, walking
from halftone.models.cost import FLOAT_BYTES, LayerCost, Work
from halftone.models.quant_model import QuantModel
from halftone.nn import QuantizedLayer


@dataclass(frozen=True)
class Gptq(AbstractMethod):
    """Optimal-brain rounding of each layer on inputs from the model quantized so far.

    Attributes:
        targets: ``float``: what the layer puts out in the float model, so that it makes up for the error of its inputs as far as a
            linear map can; ``own``: what its float weight puts out on the same inputs, as GPTQ has it.
        damping: share of the mean diagonal added to the Hessian's diagonal.
        by_activation: round the columns with the largest inputs first ("act-order").
        rows_per_batch: input rows (pixels or tokens) of each batch that enter the Hessian; convolutions have far more than needed.
        columns: width of the blocks of the Hessian that are looked at; 0 is all of it. Work goes with the cube of it: the widest
            convolution of Stable Diffusion has 23,040 columns. A block holds whole input channels, one at least.
        together: whether all layers of a unit look at their inputs in one pass, before any of them is rounded, and not in a pass
            each.
        skip: globs of the roles whose layers keep the rounding they have.

    Convolutions are linears on unfolded patches. Scales come from a rounding step before and are kept.

    Deviation from GPTAQ, whose target ``float`` is: the weight is moved to the closed-form optimum before it is rounded, while
    GPTAQ adds a term to each column's update.
    """

    paper: ClassVar[str] = "GPTQ arXiv:2210.17323; GPTAQ arXiv:2504.02692"
    needs: ClassVar[tuple[str, ...]] = ("weight_scales",)
    targets: Literal["float", "own"] = "float"
    damping: float = 0.01
    by_activation: bool = True
    rows_per_batch: int = 2048
    walk_batch: int = 32
    skip: tuple[str, ...] = ()
    columns: int = 0
    together: bool = False

    def __post_init__(self) -> None:
        at_least(self, 0, "damping", "columns")
        at_least(self, 1, "rows_per_batch", "walk_batch")

    def apply(self, model: QuantModel, data: Trajectory, run: Run) -> StepReport:
        skipped = model.plan.of_roles(f"steps.{run.step}.skip", self.skip)
        walk = Walk(model, data, self.walk_batch, run.store())
        layers: dict[str, dict] = {}
        with run.progress.task("gptq", len(walk), "blocks", weights=self._seconds(walk, skipped)) as task:
            for unit in walk:
                paths = [path for path in unit.layers if path not in skipped]
                for several in [paths] if self.together else [[path] for path in paths]:
                    for path, found in self._rounded(model, unit, several, run).items():
                        layer, scheme = model.layer(path), model.plan.quantized()[path]
                        layer.hold(found["codes"], layer.weight_affine(), scheme)
                        before, after = (float(v) for v in found["errors"])
                        layers[path] = {"error_nearest": before, "error": after}
                task.advance(note=unit.path)
        return StepReport(layers)

    def _seconds(self, walk: Walk, skipped: Collection[str]) -> list[float]:
        """Return about what each unit takes: wide layers of few pixels are rounded longer than they run, others the reverse.

        On another device than the CPU, where a unit's own time is not known, what it took to start.
        """
        if walk.device.type != "cpu":
            return walk.seconds
        mac, element = seconds_a_mac(walk.device), seconds_an_element(walk.device)
        found, seen = [], set(skipped)
        for unit, once in zip(walk.tape.units(), walk.seconds, strict=True):
            paths = [path for path in walk.model.layers_in(unit) if path not in seen]
            seen.update(paths)  # a unit that is called again is decided the first time
            passes = len(walk.streams) + self._passes(len(paths))
            work = Work()
            for layer in map(walk.model.layer, paths):
                (out, *columns), groups = layer.weight_shape, getattr(layer, "groups", 1)
                work += self._rounding(math.prod(columns), out // groups).times(groups)
            found.append(passes * len(walk.indices) * once + work.macs * mac + work.elements * element)
        return found

    @property
    def _streams(self) -> int:
        """Return how many streams are looked at: the float one only where it is aimed at."""
        return 2 if self.targets == "float" else 1

    def _passes(self, layers: int) -> int:
        """Return how often a unit of so many layers runs for them to look at their inputs."""
        return self._streams * (min(1, layers) if self.together else layers)

    def effort(self, job: Job) -> Effort:
        found = walking(job, self.walk_batch)
        for unit in job.cost.units:
            layers = [layer for layer in unit.layers if layer.path in job.quantized]
            found = found.plus(job.unit(unit).over(job.samples, self.walk_batch).times(self._passes(len(layers))))
            for layer in layers:
                found = found.plus(*self._effort_of(layer, job.samples))
        return found

    def _effort_of(self, layer: LayerCost, samples: int) -> tuple[Work, int]:
        """Return the work and the working bytes of one layer's Hessian and rounding, without the passes."""
        batch, n = min(self.walk_batch, samples), layer.columns
        width = min(n, self.columns) if self.columns else n
        batches = -(-samples // batch)
        seen = min(batch * layer.rows, self.rows_per_batch)
        moment = Work(batches * seen * n * width, batches * 3 * seen * n, batches * 10)
        rounding = self._rounding(n, layer.weights // n // layer.groups)
        return moment.times(self._streams) + rounding.times(layer.groups), FLOAT_BYTES * (
            2 * seen * n * layer.groups + 13 * n * width
        )

    def _rounding(self, n: int, out: int) -> Work:
        """Return the work of rounding ``out`` rows of ``n`` columns.

        Two factorisations, an inverse and the errors before and after in float64, which counts twice; then column by column the
        rest of its block, and block by block the rest of the row.
        """
        width = min(n, self.columns) if self.columns else n
        return Work(4 * n * width**2 + 4.5 * out * n * width, 170 * out * n, 30 * width)

    def _rounded(self, model: QuantModel, unit: Unit, paths: list[str], run: Run) -> dict[str, dict[str, torch.Tensor]]:
        """Return codes and errors of the layers at ``paths``, which look at their inputs together."""

        def compute() -> dict[str, torch.Tensor]:
            moments = self._moments(model, unit, paths, run)
            found = {path: self._round(model, path, moments.pop(path)) for path in paths}
            return {f"{path}.{what}": value for path, each in found.items() for what, value in each.items()}

        if not paths:
            return {}
        found = run.memo(paths[0], compute)
        return {path: {what: found[f"{path}.{what}"] for what in ("codes", "errors")} for path in paths}

    def _round(self, model: QuantModel, path: str, moments: list["_Moments"]) -> dict[str, torch.Tensor]:
        layer, weight = model.layer(path), model.target(path)
        assert layer.scheme is not None
        grid = layer.scheme.weight.number_format
        affine = along_weight(layer.weight_affine(), layer.segments, weight.ndim)
        codes, errors = [], torch.zeros(2, dtype=torch.float64)
        scale = affine.scale.expand_as(weight).flatten(1)
        zero_point = affine.zero_point.expand_as(weight).flatten(1)
        nearest = layer.dequantized_weight().flatten(1)
        for moment, rows in zip(moments, torch.arange(len(weight)).chunk(len(moments)), strict=True):
            cut = partial(in_blocks, width=moment.width)
            wanted = cut(weight.flatten(1)[rows].float())
            if self.targets == "float":
                wanted = compensated(wanted, moment.second, moment.cross, self.damping)
            # A column that only fills the last block up has a step, like any other; what it is rounded to is cut off again.
            part = Affine(cut(scale[rows], fill=1.0), cut(zero_point[rows]))
            found, rounded = round_columns(wanted, part, grid, moment.second, self.damping, self.by_activation)
            codes.append(found.movedim(0, 1).flatten(1)[:, : scale.shape[1]])
            for i, candidate in enumerate((cut(nearest[rows]), rounded)):
                difference = (candidate - wanted).double()
                errors[i] += float(((difference @ moment.second.double()) * difference).sum())
        return {"codes": torch.cat(codes).view(weight.shape), "errors": errors}

    def _moments(self, model: QuantModel, unit: Unit, paths: list[str], run: Run) -> dict[str, list["_Moments"]]:
        """Return the moments of each layer's inputs, one for each of its groups, by path."""
        layers = {path: model.layer(path) for path in paths}
        found = {path: self._empty(layer) for path, layer in layers.items()}
        random = generator(run.seed, run.step, unit.path)
        with torch.no_grad():
            for batch in range(len(unit.targets)):
                chosen = _Rows(layers, self.rows_per_batch, random)
                mine = theirs = chosen.of(unit, QUANTIZED, batch)
                if self.targets == "float":
                    with model.in_float(unit.path):
                        theirs = chosen.of(unit, FLOAT, batch)
                for path, moments in found.items():
                    parts = (each[path].chunk(len(moments), dim=1) for each in (mine, theirs))
                    for moment, q, f in zip(moments, *parts, strict=True):
                        moment.add(q, f)
        if not unit.targets or not all(moment.finite() for moments in found.values() for moment in moments):
            raise CalibrationError(f"inputs of a layer in {unit.path}", "finite values", "NaN, infinity or none")
        return found

    def _empty(self, layer: QuantizedLayer) -> list["_Moments"]:
        columns = layer.weight[0].numel()
        return [_Moments(self._width(columns, layer.weight[0, 0].numel())) for _ in range(getattr(layer, "groups", 1))]

    def _width(self, columns: int, channel: int) -> int:
        """Return how many of a group's columns are in a block; each input channel has ``channel`` of them."""
        return min(columns, max(1, self.columns // channel) * channel) if self.columns else columns


class _Moments:
    """Second moment of a layer's inputs, and the cross moment of the float model's with them, both ``[blocks, width, width]``."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.second = self.cross = torch.zeros(())

    def add(self, mine: torch.Tensor, theirs: torch.Tensor) -> None:
        """Count rows ``[rows, n]`` of the model quantized so far and of the float model; they may be the same."""
        q = in_blocks(mine, self.width)
        self.second = self.second + q.mT @ q / len(mine)
        self.cross = self.second if theirs is mine else self.cross + in_blocks(theirs, self.width).mT @ q / len(mine)

    def finite(self) -> bool:
        """Return whether all of them are numbers."""
        return bool(torch.isfinite(self.second).all() and torch.isfinite(self.cross).all())


class _Rows:
    """The same random choice of layers' input rows, whichever stream feeds the unit."""

    def __init__(self, layers: dict[str, QuantizedLayer], count: int, random: torch.Generator) -> None:
        self.layers, self.count, self.random = layers, count, random
        self.keep: dict[str, list[torch.Tensor]] = {path: [] for path in layers}

    def of(self, unit: Unit, stream: int, batch: int) -> dict[str, torch.Tensor]:
        """Return the rows ``[rows, n]`` that each layer reads while the unit runs once; a layer that runs twice reads two lots."""
        found: dict[str, list[torch.Tensor]] = {path: [] for path in self.layers}

        def looker(path: str) -> Callable[[nn.Module, tuple], None]:
            def look(module: nn.Module, args: tuple) -> None:
                x = self.layers[path].rounded_part(args[0])
                found[path].append(input_rows(module, x.float(), lambda rows: self._kept(path, len(found[path]), rows)))

            return look

        hooks = [layer.register_forward_pre_hook(looker(path)) for path, layer in self.layers.items()]
        try:
            args, kwargs = unit.call(stream, batch)
            unit.module(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        for path, rows in found.items():
            if not rows:
                raise CalibrationError(f"inputs of {path} in {unit.path}", "a layer that runs", "one that does not")
        return {path: torch.cat(rows) for path, rows in found.items()}

    def _kept(self, path: str, time: int, rows: int) -> torch.Tensor:
        """Return which of so many rows are kept when the layer runs for the ``time``-th time."""
        if time == len(self.keep[path]):
            self.keep[path].append(torch.randperm(rows, generator=self.random)[: self.count])
        return self.keep[path][time]


def input_rows(layer: nn.Module, x: torch.Tensor, keep: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """Return the input as rows that the flattened weight multiplies, ``[rows, in * kernel]``, groups side by side.

    Args:
        keep: the indices of the rows to return, given how many there are. Only these are unfolded: a convolution has a row for
            each pixel it puts out, many more than a moment needs.
    """
    if isinstance(layer, nn.Linear):
        rows = x.flatten(0, -2)
        return rows[keep(len(rows))]
    assert isinstance(layer, nn.Conv2d)
    if isinstance(layer.padding, str):
        raise CalibrationError("gptq", "convolutions with numeric padding", layer.padding)
    high, wide = layer.padding
    padded = nn.functional.pad(x, (wide, wide, high, high)).permute(0, 2, 3, 1)  # the channels of a pixel together
    down, across = (
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for size, pad, dilation, kernel, stride in zip(
            x.shape[2:], layer.padding, layer.dilation, layer.kernel_size, layer.stride, strict=True
        )
    )
    row = keep(len(x) * down * across)
    sample, y, x0 = row // (down * across), row // across % down * layer.stride[0], row % across * layer.stride[1]
    y = y[:, None] + torch.arange(layer.kernel_size[0]) * layer.dilation[0]
    x0 = x0[:, None] + torch.arange(layer.kernel_size[1]) * layer.dilation[1]
    patches = padded[sample[:, None, None], y[:, :, None], x0[:, None, :]]  # [rows, kernel, kernel, in]
    return patches.permute(0, 3, 1, 2).flatten(1)
