"""Block reconstruction with AdaRound: learn for each weight whether it is rounded up or down."""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import nn

from halftone.calibrate.trajectory import Trajectory
from halftone.calibrate.walk import FLOAT, QUANTIZED, Unit, Walk
from halftone.formats import AbstractFormat, Affine
from halftone.formats.segments import along_weight
from halftone.foundation.bounds import at_least, between, positive
from halftone.methods.contract import AbstractMethod, Run, StepReport
from halftone.methods.effort import BACKWARD, Effort, Job, learning, seconds_an_element, walking
from halftone.methods.fit import LARGEST_RATE, UnitError, check_integral, optimise, unimproved
from halftone.methods.output_error import DENOISER, OutputError
from halftone.models.quant_model import QuantModel
from halftone.nn import Scheme

_STRETCH_LOW, _STRETCH_HIGH = -0.1, 1.1  # gamma and zeta of the rectified sigmoid
_FUNCTIONS = (
    65  # of the size of a weight in each iteration: soft rounding, the regulariser (powers are dear), gradients, Adam
)
_DECIDED = 0.95  # h of a decision taken over from an earlier rounding: firm, yet not beyond the gradient's reach


class SoftRounding(nn.Module):
    """The rounding variable V of one weight: between floor and ceiling, at the end exactly one of them.

    ``w(V) = scale * (clamp(floor(w / scale) + h(V) + zero_point) - zero_point)``, ``h(V) = clip(sigmoid(V) * 1.2 - 0.1, 0, 1)``;
    V starts where h is the fractional part, so the soft weight starts as the (clipped) float weight. Given ``codes`` of an earlier
    rounding, the choice is between each code and its neighbour on the side of the float weight, and V starts nearly decided for
    the code.

    Raises:
        FormatError: the grid is not made of consecutive integers.
    """

    def __init__(
        self, weight: torch.Tensor, affine: Affine, grid: AbstractFormat, codes: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        check_integral("a rounding variable", grid)
        self.affine, self.grid = affine, grid
        scaled = weight.float() * affine.scale.reciprocal()
        if codes is None:
            self.floor = scaled.floor()
            rest = scaled - self.floor
        else:
            level = grid.decode(codes) - affine.zero_point
            below = scaled < level  # the alternative is one lower, so the code itself is the ceiling
            self.floor = torch.where(below, level - 1, level)
            rest = torch.where(below, _DECIDED, 1 - _DECIDED)
        rest = rest.clamp(1e-4, 1 - 1e-4)
        self.v = nn.Parameter(-torch.log((_STRETCH_HIGH - _STRETCH_LOW) / (rest - _STRETCH_LOW) - 1))

    def h(self) -> torch.Tensor:
        """Return the share of the step that is added to the floor, in [0, 1]."""
        return (self.v.sigmoid() * (_STRETCH_HIGH - _STRETCH_LOW) + _STRETCH_LOW).clamp(0, 1)

    def _weight(self, up: torch.Tensor) -> torch.Tensor:
        levels = (self.floor + up + self.affine.zero_point).clamp(self.grid.low, self.grid.high)
        return (levels - self.affine.zero_point) * self.affine.scale

    def soft(self) -> torch.Tensor:
        """Return the weight that gradients flow through."""
        return self._weight(self.h())

    def codes(self) -> torch.Tensor:
        """Return the uint8 codes of the hard decision V >= 0."""
        return self.grid.encode(self.floor + (self.v >= 0).float() + self.affine.zero_point)

    def indecision(self, beta: float) -> torch.Tensor:
        """Return the sum over all weights of ``1 - |2h - 1|^beta``: 0 when every decision has been made."""
        return (1 - (2 * self.h() - 1).abs().pow(beta)).sum()


@dataclass
class _Judge:
    """The denoiser's error, where it is asked for: at the start, and the least that units have reached."""

    error: OutputError | None = None
    start: float = math.inf
    least: float = math.inf


@dataclass(frozen=True)
class AdaRound(AbstractMethod):
    """Block-wise reconstruction (BRECQ's, as Q-Diffusion uses it): every unit in execution order, all its weights together.

    Attributes:
        iterations: Adam steps a unit.
        batch: samples a step.
        lr: Adam's learning rate of V.
        regularization: weight of the rounding regulariser against the reconstruction error, both normalised (see below).
        warm_up: share of the iterations without the regulariser.
        beta: its exponent at the start and at the end, linear in between.
        inputs: ``quantized`` feeds a unit what the model quantized so far puts out (Q-Diffusion), ``float`` the float model's.
        start: ``float`` is AdaRound's own start; ``codes`` goes on from the decisions of the step before, such as GPTQ's, and
            needs a small part of the iterations.
        judged_on: samples on which the whole denoiser's error must fall for a unit to keep what it learned, spread evenly over the
            calibration; 0 asks for nothing beyond the unit's own error.
        walk_batch: samples a forward while walking.
        skip: globs of the roles whose layers keep the rounding they have.

    Needs a step that has rounded the weights before (its scales are kept). Scales and zero points are not learned.

    Deviations from the official code: units come in execution order; *all* rounding variables are regularised, also those of the
    second half of a split layer; the error is the mean square over all outputs divided by that of the rounding before, and the
    regulariser is the mean over the unit's weights, so that their balance depends neither on tensor layout nor on the size of
    activations; a unit whose error, or the denoiser's, did not fall keeps the rounding it had.
    """

    paper: ClassVar[str] = "AdaRound arXiv:2004.10568; BRECQ arXiv:2102.05426; Q-Diffusion arXiv:2302.04304"
    needs: ClassVar[tuple[str, ...]] = ("weight_scales",)
    iterations: int = 20000
    batch: int = 32
    lr: float = 1e-3
    regularization: float = 100.0
    warm_up: float = 0.2
    beta: tuple[float, float] = (20.0, 2.0)
    inputs: Literal["quantized", "float"] = "quantized"
    start: Literal["float", "codes"] = "float"
    judged_on: int = 0
    walk_batch: int = 32
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        at_least(self, 1, "iterations", "batch", "walk_batch")
        positive(self, "lr", high=LARGEST_RATE)
        positive(self, "beta")
        at_least(self, 0, "regularization", "judged_on")
        between(self, 0, 1, "warm_up")

    def apply(self, model: QuantModel, data: Trajectory, run: Run) -> StepReport:
        skipped = model.plan.of_roles(f"steps.{run.step}.skip", self.skip)
        schemes = {path: scheme for path, scheme in model.plan.quantized().items() if path not in skipped}
        for path, scheme in schemes.items():
            check_integral(f"weight of {path}", scheme.weight.number_format)
        stream = QUANTIZED if self.inputs == "quantized" else FLOAT
        judge = self._judge(model, data, run)
        walk = Walk(model, data, self.walk_batch, run.store(), quantized=stream == QUANTIZED)
        layers: dict[str, dict] = {}
        with run.progress.task(
            "reconstructing", len(walk), "blocks", weights=self._weights(model, walk, set(schemes))
        ) as task:
            for unit in walk:
                learned = {path: schemes[path] for path in unit.layers if path in schemes}
                if learned:
                    found = run.memo(unit.path, partial(self._reconstruct, model, unit, learned, stream, run, judge))
                    for path, scheme in learned.items():
                        layer = model.layer(path)
                        layer.hold(found[f"codes.{path}"], layer.weight_affine(), scheme)
                    before, after, judge.least = (float(v) for v in found["errors"])
                    layers[unit.path] = {"error_before": before, "error": after}
                    task.advance(note=f"{unit.path}: error {after / max(before, 1e-30):.2f} of before")
                else:
                    task.advance()
        notes = unimproved(layers)
        if judge.error:
            layers[DENOISER] = {"error_before": judge.start, "error": judge.least}
        return StepReport(layers, notes)

    def _weights(self, model: QuantModel, walk: Walk, planned: set[str]) -> list[float]:
        """Return about how many seconds each unit takes, from what it took in float: the estimate of the time left needs it."""
        found, each = [], seconds_an_element(walk.device)
        for path, seconds in zip(walk.tape.units(), walk.seconds, strict=True):
            layers = [layer for layer in model.layers_in(path) if layer in planned]
            count = sum(torch.Size(model.layer(layer).weight_shape).numel() for layer in layers)
            iteration = BACKWARD * self.batch / walk.batch * seconds + _FUNCTIONS * count * each
            found.append(2 * len(walk.indices) * seconds + (self.iterations * iteration if layers else 0.0))
        return found

    def _judge(self, model: QuantModel, data: Trajectory, run: Run) -> "_Judge":
        if not self.judged_on:
            return _Judge()
        rows = torch.linspace(0, len(data) - 1, min(self.judged_on, len(data))).round().long()
        error = OutputError(model, data, rows, self.walk_batch)

        def start() -> dict[str, torch.Tensor]:
            return {"error": torch.tensor(error.mean(self.walk_batch), dtype=torch.float64)}

        found = float(run.memo("judge", start)["error"])
        return _Judge(error, found, found)

    def effort(self, job: Job) -> Effort:
        found = walking(job, self.walk_batch, streams=2 if self.inputs == "quantized" else 1)
        for unit in job.cost.units:
            if job.planned(unit):
                found = found.plus(job.unit(unit).over(2 * job.samples, self.walk_batch))  # its error before and after
                found = found.plus(job.forward().over(min(self.judged_on, job.samples), self.walk_batch))
                found = found.plus(*learning(job, unit, self.iterations, self.batch, _FUNCTIONS))
        return found

    def _reconstruct(
        self, model: QuantModel, unit: Unit, schemes: dict[str, Scheme], stream: int, run: Run, judge: "_Judge"
    ) -> dict[str, torch.Tensor]:
        roundings, start = {}, {}
        for path, scheme in schemes.items():
            layer = model.layer(path)
            weight, affine = model.target(path), layer.weight_affine()
            broadcast = along_weight(affine, layer.segments, weight.ndim)
            start[path] = layer.codes()
            known = start[path] if self.start == "codes" else None
            roundings[path] = SoftRounding(weight, broadcast, scheme.weight.number_format, known)
        error = UnitError(unit, stream)
        before = error.mean(self.walk_batch)
        self._optimise(model, error, roundings, before, run)
        codes = {path: rounding.codes() for path, rounding in roundings.items()}
        for path, value in codes.items():
            model.layer(path).hold(value, model.layer(path).weight_affine(), schemes[path])
        after = error.mean(self.walk_batch)
        least = judge.least
        if after < before and judge.error:
            least = judge.error.mean(self.walk_batch)
        if not after < before or (judge.error and not least < judge.least):
            codes, after, least = start, before, judge.least
        errors = torch.tensor([before, after, least], dtype=torch.float64)
        return {**{f"codes.{p}": c for p, c in codes.items()}, "errors": errors}

    def _optimise(
        self, model: QuantModel, error: UnitError, roundings: dict[str, SoftRounding], scale: float, run: Run
    ) -> None:
        if scale == 0:
            return  # the rounding is already exact, and there is nothing to normalise by
        variables = [rounding.v for rounding in roundings.values()]
        count = sum(v.numel() for v in variables)

        def penalty(i: int) -> torch.Tensor | float:
            if i < self.warm_up * self.iterations:
                return 0.0
            beta = self._beta(i)
            undecided = sum(rounding.indecision(beta) for rounding in roundings.values())
            return self.regularization * undecided / count

        for path, rounding in roundings.items():
            model.layer(path).weight_trial = rounding.soft
        try:
            optimise(
                error,
                variables,
                run,
                iterations=self.iterations,
                batch=self.batch,
                rate=lambda i: self.lr,
                scale=scale,
                penalty=penalty,
            )
        finally:
            for path in roundings:
                model.layer(path).weight_trial = None

    def _beta(self, i: int) -> float:
        start, end = self.beta
        warm = self.warm_up * self.iterations
        return start + (end - start) * (i - warm) / max(self.iterations - warm, 1)
