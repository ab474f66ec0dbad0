"""Bias correction: the constant that quantizing adds to a layer's outputs is taken out of its bias."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from halftone.calibrate.trajectory import Trajectory
from halftone.calibrate.walk import FLOAT, QUANTIZED, Unit, Walk
from halftone.foundation.bounds import at_least
from halftone.methods.contract import AbstractMethod, Run, StepReport
from halftone.methods.effort import Effort, Job, walking
from halftone.models.quant_model import QuantModel


@dataclass(frozen=True)
class Bias(AbstractMethod):
    """Take from every output channel the shift it has against the float model, layer by layer in execution order.

    A rounded weight multiplies activations whose mean is not zero, so part of its error is a constant. A sampler adds up what its
    denoiser says: over the calls a constant grows with their number, where an error that changes from call to call partly cancels.

    The shift of a channel is the median over the calibration samples of its mean over positions, on quantized inputs against float.

    Attributes:
        walk_batch: samples a forward while walking.
        skip: globs of the roles whose layers keep the bias they have.

    Deviation: Nagel et al. subtract the mean. In a diffusion model the last calls (the smallest noise) have by far the largest
    errors and no influence on the image; a mean would move every other call for their sake (docs/decisions/0013). Layers without
    a bias keep none.
    """

    paper: ClassVar[str] = "Data-Free Quantization, arXiv:1906.04721, section 4.2 and appendix D"
    needs: ClassVar[tuple[str, ...]] = ("weight_scales", "input_scales")
    walk_batch: int = 32
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        at_least(self, 1, "walk_batch")

    def apply(self, model: QuantModel, data: Trajectory, run: Run) -> StepReport:
        skipped = model.plan.of_roles(f"steps.{run.step}.skip", self.skip)
        walk = Walk(model, data, self.walk_batch, run.store())
        facts: dict[str, dict] = {}
        with run.progress.task("correcting biases", len(walk), "blocks", weights=walk.seconds) as task:
            for unit in walk:
                paths = [p for p in unit.layers if p not in skipped and model.layer(p).bias is not None]
                found = run.memo(unit.path, partial(self._correct, model, unit, paths)) if paths else {}
                for path, shift in found.items():
                    _take_out(model, path, shift)
                    facts[path] = {"shift": float(f"{shift.square().mean().sqrt():.6g}")}
                task.advance(note=unit.path)
        return StepReport(facts)

    def effort(self, job: Job) -> Effort:
        found = walking(job, self.walk_batch, scores=True)
        for unit in job.cost.units:
            layers = sum(layer.has_bias for layer in unit.layers if layer.path in job.quantized)
            found = found.plus(job.unit(unit, scores=True).over(job.samples, self.walk_batch).times(1 + layers))
        return found

    def _correct(self, model: QuantModel, unit: Unit, paths: list[str]) -> dict[str, torch.Tensor]:
        """Return each layer's shift ``[out]``; the unit is left as it was."""
        with model.in_float(unit.path):
            wanted = _channel_means(model, unit, paths, FLOAT)
        before = {path: model.layer(path).bias for path in paths}
        shifts = {}
        try:
            # In the order in which they run: an earlier layer's shift is gone by then.
            for path, float_means in wanted.items():
                means = _channel_means(model, unit, [path], QUANTIZED)[path]
                shifts[path] = (means - float_means).median(0).values
                _take_out(model, path, shifts[path])
        finally:
            for path, bias in before.items():
                model.layer(path).bias = bias
                model.layer(path).refresh()
        return shifts


def _take_out(model: QuantModel, path: str, shift: torch.Tensor) -> None:
    layer = model.layer(path)
    assert layer.bias is not None
    # A new parameter: the float model keeps the one it has.
    layer.bias = nn.Parameter(layer.bias.detach() - shift.to(layer.bias.dtype), requires_grad=False)
    layer.refresh()


def _channel_means(model: QuantModel, unit: Unit, paths: list[str], stream: int) -> dict[str, torch.Tensor]:
    """Return the outputs' means over positions, float32 ``[N, out]``, by layer in the order in which the layers ran."""
    seen: dict[str, list[torch.Tensor]] = {}

    def tap(path: str) -> torch.utils.hooks.RemovableHandle:
        layer = model.layer(path)

        def look(module: nn.Module, args: tuple, out: torch.Tensor) -> None:
            rows = out.float().movedim(layer.channel_axis, -1)
            seen.setdefault(path, []).append(rows.flatten(1, -2).mean(1) if rows.ndim > 2 else rows)

        return layer.register_forward_hook(look)

    hooks = [tap(path) for path in paths]
    try:
        with torch.no_grad():
            for batch in range(len(unit.targets)):
                args, kwargs = unit.call(stream, batch)
                unit.module(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return {path: torch.cat(rows) for path, rows in seen.items()}
