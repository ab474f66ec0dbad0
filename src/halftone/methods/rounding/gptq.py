"""GPTQ: round the weights column by column and let the columns that are left make up for the error."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import nn

from halftone.calibrate.trajectory import Trajectory
from halftone.calibrate.walk import FLOAT, QUANTIZED, Unit, Walk
from halftone.formats import AbstractFormat, Affine, fake_quantize, quantize
from halftone.formats.segments import along_weight
from halftone.foundation.bounds import at_least
from halftone.foundation.errors import CalibrationError
from halftone.foundation.seeds import generator
from halftone.methods.contract import AbstractMethod, Run, StepReport
from halftone.methods.effort import Effort, Job, walking
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

    def __post_init__(self) -> None:
        at_least(self, 0, "damping")
        at_least(self, 1, "rows_per_batch", "walk_batch")

    def apply(self, model: QuantModel, data: Trajectory, run: Run) -> StepReport:
        skipped = model.plan.of_roles(f"steps.{run.step}.skip", self.skip)
        walk = Walk(model, data, self.walk_batch, run.store())
        layers: dict[str, dict] = {}
        with run.progress.task("gptq", len(walk), "blocks") as task:
            for unit in walk:
                for path in (path for path in unit.layers if path not in skipped):
                    found = run.memo(path, partial(self._round, model, unit, path, run))
                    layer, scheme = model.layer(path), model.plan.quantized()[path]
                    layer.hold(found["codes"], layer.weight_affine(), scheme)
                    before, after = (float(v) for v in found["errors"])
                    layers[path] = {"error_nearest": before, "error": after}
                task.advance(note=unit.path)
        return StepReport(layers)

    @property
    def _streams(self) -> int:
        """Return how many streams are looked at: the float one only where it is aimed at."""
        return 2 if self.targets == "float" else 1

    def effort(self, job: Job) -> Effort:
        found = walking(job, self.walk_batch)
        for unit in job.cost.units:
            for layer in (layer for layer in unit.layers if layer.path in job.quantized):
                # Each layer's inputs are seen in passes of its own.
                for _ in range(self._streams):
                    found = found.plus(job.unit(unit).over(job.samples, self.walk_batch))
                found = found.plus(*self._effort_of(layer, job.samples))
        return found

    def _effort_of(self, layer: LayerCost, samples: int) -> tuple[Work, int]:
        """Return the work and the working bytes of one layer's Hessian and rounding, without the passes."""
        batch, n = min(self.walk_batch, samples), layer.columns
        batches = -(-samples // batch)
        seen = min(batch * layer.rows, self.rows_per_batch)
        out = layer.weights // n // layer.groups
        moment = Work(batches * seen * n * n, batches * 3 * seen * n, batches * 10)
        # Two factorisations, an inverse and the errors before and after in float64, which counts twice; then column by column the
        # rest of its block, and block by block the rest of the row.
        rounding = Work(4 * n**3 + 4.5 * out * n * n, 170 * out * n, 30 * n)
        return moment.times(self._streams) + rounding.times(layer.groups), FLOAT_BYTES * (
            2 * seen * n * layer.groups + 13 * n * n
        )

    def _round(self, model: QuantModel, unit: Unit, path: str, run: Run) -> dict[str, torch.Tensor]:
        layer, weight = model.layer(path), model.target(path)
        assert layer.scheme is not None
        grid = layer.scheme.weight.number_format
        groups = getattr(layer, "groups", 1)
        moments = self._moments(model, layer, unit, groups, run)
        affine = along_weight(layer.weight_affine(), layer.segments, weight.ndim)
        codes, errors = [], torch.zeros(2, dtype=torch.float64)
        columns = weight[0].numel()
        scale = affine.scale.expand_as(weight).reshape(len(weight), columns)
        zero_point = affine.zero_point.expand_as(weight).reshape(len(weight), columns)
        nearest = layer.dequantized_weight().flatten(1)
        for g, rows in enumerate(torch.arange(len(weight)).chunk(groups)):
            second, cross = moments[g]
            wanted = weight.flatten(1)[rows].float()
            if self.targets == "float":
                wanted = compensated(wanted, second, cross, self.damping)
            part = Affine(scale[rows], zero_point[rows])
            found, rounded = round_columns(wanted, part, grid, second, self.damping, self.by_activation)
            codes.append(found)
            for i, candidate in enumerate((nearest[rows], rounded)):
                difference = (candidate - wanted).double()
                errors[i] += float(((difference @ second.double()) * difference).sum())
        return {"codes": torch.cat(codes).view(weight.shape), "errors": errors}

    def _moments(
        self, model: QuantModel, layer: QuantizedLayer, unit: Unit, groups: int, run: Run
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return for each group the second moment of the layer's inputs and their cross moment with the float ones, ``[n, n]``."""
        totals = [[torch.zeros(()), torch.zeros(())] for _ in range(groups)]
        random = generator(run.seed, run.step, unit.path)
        with torch.no_grad():
            for batch in range(len(unit.targets)):
                chosen = _Rows(layer, self.rows_per_batch, random)
                mine = chosen.of(unit, QUANTIZED, batch)
                if self.targets == "float":
                    with model.in_float(unit.path):
                        theirs = chosen.of(unit, FLOAT, batch)
                else:
                    theirs = mine
                for total, q, f in zip(totals, mine.chunk(groups, dim=1), theirs.chunk(groups, dim=1), strict=True):
                    total[0] = total[0] + q.t() @ q / len(q)
                    if theirs is not mine:
                        total[1] = total[1] + f.t() @ q / len(q)
        if not unit.targets or not all(torch.isfinite(moment).all() for total in totals for moment in total):
            raise CalibrationError(f"inputs of a layer in {unit.path}", "finite values", "NaN, infinity or none")
        return [(second, cross if self.targets == "float" else second) for second, cross in totals]


class _Rows:
    """The same random choice of a layer's input rows, whichever stream feeds the unit."""

    def __init__(self, layer: QuantizedLayer, count: int, random: torch.Generator) -> None:
        self.layer, self.count, self.random = layer, count, random
        self.keep: list[torch.Tensor] = []

    def of(self, unit: Unit, stream: int, batch: int) -> torch.Tensor:
        """Return the rows ``[rows, n]`` that the layer reads while the unit runs once; a layer that runs twice reads two lots."""
        found: list[torch.Tensor] = []

        def look(module: nn.Module, args: tuple) -> None:
            x = self.layer.rounded_part(args[0])
            found.append(input_rows(module, x.float(), lambda rows: self._kept(len(found), rows)))

        hook = self.layer.register_forward_pre_hook(look)
        try:
            args, kwargs = unit.call(stream, batch)
            unit.module(*args, **kwargs)
        finally:
            hook.remove()
        if not found:
            raise CalibrationError(f"inputs of a layer in {unit.path}", "a layer that runs", "one that does not")
        return torch.cat(found)

    def _kept(self, time: int, rows: int) -> torch.Tensor:
        """Return which of so many rows are kept when the layer runs for the ``time``-th time."""
        if time == len(self.keep):
            self.keep.append(torch.randperm(rows, generator=self.random)[: self.count])
        return self.keep[time]


def compensated(weight: torch.Tensor, second: torch.Tensor, cross: torch.Tensor, damping: float) -> torch.Tensor:
    """Return the weight ``[out, n]`` that comes closest to ``weight``'s output on float inputs from the inputs there really are.

    ``argmin_V |V Xq - W Xf|^2 + damping * |V - W|^2`` with ``second = Xq Xq^T`` and ``cross = Xf Xq^T``, both ``[n, n]``;
    ``damping`` is relative to the mean of the diagonal.
    """
    h = second.double().clone()
    diagonal = h.diagonal()
    diagonal += max(damping, 1e-6) * diagonal.mean().clamp(min=1e-12)
    change = weight.double() @ (cross.double() - second.double())
    return weight + torch.linalg.solve(h, change.t()).t().float()


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


def round_columns(
    weight: torch.Tensor,
    affine: Affine,
    grid: AbstractFormat,
    hessian: torch.Tensor,
    damping: float,
    by_activation: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``(codes, rounded)`` ``[out, n]`` of ``weight`` ``[out, n]`` for inputs with second moment ``hessian`` ``[n, n]``.

    ``affine`` has a scale and zero point for each element. Columns whose input is always zero are rounded to nearest.
    """
    n = weight.shape[1]
    h = hessian.double().clone()
    diagonal = h.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1.0
    diagonal += damping * diagonal.mean()
    order = diagonal.argsort(descending=True) if by_activation else torch.arange(n, device=h.device)
    h = h[order][:, order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    w = weight[:, order].clone()
    scale, zero_point = affine.scale[:, order], affine.zero_point[:, order]
    rounded = torch.empty_like(w)
    block = 128
    for start in range(0, n, block):
        stop = min(start + block, n)
        errors = w.new_empty(len(w), stop - start)
        for i in range(start, stop):
            rounded[:, i] = fake_quantize(w[:, i], Affine(scale[:, i], zero_point[:, i]), grid)
            error = (w[:, i] - rounded[:, i]) / upper[i, i]
            w[:, i:stop] -= error.unsqueeze(1) * upper[i, i:stop]
            errors[:, i - start] = error
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    back = order.argsort()
    rounded = rounded[:, back]
    return quantize(rounded, affine, grid), rounded
