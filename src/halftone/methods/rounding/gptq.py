"""GPTQ: round the weights column by column and let the columns that are left make up for the error."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from halftone.calibrate.trajectory import Trajectory
from halftone.calibrate.walk import QUANTIZED, Unit, Walk
from halftone.formats import AbstractFormat, Affine, fake_quantize, quantize
from halftone.formats.segments import along_weight
from halftone.foundation.bounds import at_least
from halftone.foundation.errors import CalibrationError
from halftone.foundation.seeds import generator
from halftone.methods.contract import AbstractMethod, Run, StepReport
from halftone.methods.effort import Effort, Job, walking
from halftone.models.cost import FLOAT_BYTES, LayerCost, Work
from halftone.models.precision import as_float
from halftone.models.quant_model import QuantModel
from halftone.nn import QuantizedLayer


@dataclass(frozen=True)
class Gptq(AbstractMethod):
    """Optimal-brain rounding of each layer against its own output, inputs from the model quantized so far.

    Attributes:
        damping: share of the mean diagonal added to the Hessian's diagonal.
        by_activation: round the columns with the largest inputs first ("act-order").
        rows_per_batch: input rows (pixels or tokens) of each batch that enter the Hessian; convolutions have far more than needed.
        skip: globs of the roles whose layers keep the rounding they have.

    Convolutions are linears on unfolded patches. Scales come from a rounding step before and are kept.
    """

    paper: ClassVar[str] = "GPTQ arXiv:2210.17323"
    needs: ClassVar[tuple[str, ...]] = ("weight_scales",)
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

    def effort(self, job: Job) -> Effort:
        found = walking(job, self.walk_batch)
        for unit in job.cost.units:
            for layer in (layer for layer in unit.layers if layer.path in job.quantized):
                # Each layer's inputs are seen in a pass of its own.
                found = found.plus(job.unit(unit).over(job.samples, self.walk_batch))
                found = found.plus(*self._effort_of(layer, job.samples))
        return found

    def _effort_of(self, layer: LayerCost, samples: int) -> tuple[Work, int]:
        """Return the work and the working bytes of one layer's Hessian and rounding, without the passes."""
        batch, n = min(self.walk_batch, samples), layer.columns
        batches = -(-samples // batch)
        rows = batch * layer.rows
        seen = min(rows, self.rows_per_batch)
        out = layer.weights // n // layer.groups
        hessian = Work(batches * seen * n * n, batches * 3 * rows * n, batches * 10)
        # Two factorisations, an inverse and the errors before and after in float64, which counts twice; then column by column the
        # rest of its block, and block by block the rest of the row.
        rounding = Work(4 * n**3 + 4.5 * out * n * n, 170 * out * n, 30 * n)
        return hessian + rounding.times(layer.groups), FLOAT_BYTES * (2 * rows * n * layer.groups + 13 * n * n)

    def _round(self, model: QuantModel, unit: Unit, path: str, run: Run) -> dict[str, torch.Tensor]:
        layer, weight = model.layer(path), model.originals[path]
        assert layer.scheme is not None
        grid = layer.scheme.weight.number_format
        groups = getattr(layer, "groups", 1)
        hessians = self._hessians(layer, unit, groups, run)
        affine = along_weight(layer.weight_affine(), layer.segments, weight.ndim)
        codes, errors = [], torch.zeros(2, dtype=torch.float64)
        columns = weight[0].numel()
        scale = affine.scale.expand_as(weight).reshape(len(weight), columns)
        zero_point = affine.zero_point.expand_as(weight).reshape(len(weight), columns)
        nearest = layer.dequantized_weight().flatten(1)
        for g, rows in enumerate(torch.arange(len(weight)).chunk(groups)):
            flat = weight.flatten(1)[rows].float()
            part = Affine(scale[rows], zero_point[rows])
            found, rounded = round_columns(flat, part, grid, hessians[g], self.damping, self.by_activation)
            codes.append(found)
            for i, candidate in enumerate((nearest[rows], rounded)):
                difference = (candidate - flat).double()
                errors[i] += ((difference @ hessians[g].double()) * difference).sum()
        return {"codes": torch.cat(codes).view(weight.shape), "errors": errors}

    def _hessians(self, layer: QuantizedLayer, unit: Unit, groups: int, run: Run) -> list[torch.Tensor]:
        totals: list[torch.Tensor] = []
        random = generator(run.seed, run.step, unit.path)

        def look(module: nn.Module, args: tuple) -> None:
            rows = input_rows(module, args[0].float())
            keep = torch.randperm(len(rows), generator=random)[: self.rows_per_batch]
            for g, part in enumerate(rows[keep].chunk(groups, dim=1)):
                product = part.t() @ part / len(keep)
                if len(totals) <= g:
                    totals.append(product)
                else:
                    totals[g] += product

        hook = layer.register_forward_pre_hook(look)
        try:
            with torch.no_grad():
                for args, kwargs in map(as_float, unit.calls[QUANTIZED]):
                    unit.module(*args, **kwargs)
        finally:
            hook.remove()
        if not totals or not all(torch.isfinite(total).all() for total in totals):
            raise CalibrationError(f"inputs of a layer in {unit.path}", "finite values", "NaN, infinity or none")
        return totals


def input_rows(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the input as the rows that the flattened weight multiplies: ``[rows, in * kernel]``, groups side by side."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    assert isinstance(layer, nn.Conv2d)
    if isinstance(layer.padding, str):
        raise CalibrationError("gptq", "convolutions with numeric padding", layer.padding)
    patches = nn.functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return patches.transpose(1, 2).flatten(0, 1)


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
    order = diagonal.argsort(descending=True) if by_activation else torch.arange(n)
    h = h[order][:, order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    w = weight[:, order].clone()
    scale, zero_point = affine.scale[:, order], affine.zero_point[:, order]
    rounded = torch.empty_like(w)
    block = 128
    for start in range(0, n, block):
        stop = min(start + block, n)
        errors = torch.empty(len(w), stop - start)
        for i in range(start, stop):
            rounded[:, i] = fake_quantize(w[:, i], Affine(scale[:, i], zero_point[:, i]), grid)
            error = (w[:, i] - rounded[:, i]) / upper[i, i]
            w[:, i:stop] -= error.unsqueeze(1) * upper[i, i:stop]
            errors[:, i - start] = error
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    back = order.argsort()
    rounded = rounded[:, back]
    return quantize(rounded, affine, grid), rounded
