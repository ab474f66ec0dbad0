"""Learn the step sizes of a unit's quantizers, with its codes as they are."""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import nn

from halftone.calibrate.trajectory import Trajectory
from halftone.calibrate.walk import FLOAT, QUANTIZED, Unit, Walk
from halftone.formats import AbstractFormat, Affine
from halftone.formats.segments import along_input, along_weight
from halftone.foundation.bounds import at_least, positive
from halftone.methods.contract import AbstractMethod, Run, StepReport
from halftone.methods.effort import Effort, Job, learning, walking
from halftone.methods.fit import LARGEST_RATE, UnitError, check_integral, optimise, unimproved
from halftone.models.quant_model import QuantModel
from halftone.nn import QuantizedLayer
from halftone.nn.sites import SiteOwner

_FUNCTIONS = 12  # of the size of a weight in each iteration; the steps themselves are few


class LearnedStep(nn.Module):
    """One site's quantizer whose step is ``start * exp(theta)``: positive whatever the optimizer does; zero points are fixed.

    Raises:
        FormatError: the grid is not made of consecutive integers.
    """

    def __init__(self, start: Affine, grid: AbstractFormat, segments: tuple[int, ...], axis: int) -> None:
        super().__init__()
        check_integral("a learned step", grid)
        self.start, self.grid, self.segments, self.axis = start, grid, segments, axis
        self.theta = nn.Parameter(torch.zeros_like(start.scale))

    def affine(self) -> Affine:
        return Affine(self.start.scale * self.theta.exp(), self.start.zero_point)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        affine = along_input(self.affine(), self.segments, x.ndim, self.axis)
        scaled = x * affine.scale.reciprocal()  # as the definition does, so that ties fall alike
        # Straight through the rounding; the clamp stops gradients to x outside the range and sends them to the step instead.
        level = scaled + (scaled.round() - scaled).detach() + affine.zero_point
        return (level.clamp(self.grid.low, self.grid.high) - affine.zero_point) * affine.scale


class LearnedWeight(nn.Module):
    """A layer's weight with fixed codes and steps ``start * exp(theta)`` per channel, and its bias."""

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        assert layer.scheme is not None
        affine, codes = layer.weight_affine(), layer.codes()
        broadcast = along_weight(affine, layer.segments, codes.ndim)
        self.levels = layer.scheme.weight.number_format.decode(codes) - broadcast.zero_point
        self.start, self.segments = affine, layer.segments
        self.theta = nn.Parameter(torch.zeros_like(affine.scale))
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())

    def affine(self) -> Affine:
        return Affine(self.start.scale * self.theta.exp(), self.start.zero_point)

    def weight(self) -> torch.Tensor:
        return self.levels * along_weight(self.affine(), self.segments, self.levels.ndim).scale


@dataclass
class _Learner:
    """What is learned in one unit: quantizers of its sites, and (where wanted) its layers' weight steps and biases."""

    sites: dict[str, tuple[SiteOwner, str]]
    layers: dict[str, QuantizedLayer]
    steps: dict[str, LearnedStep]
    weights: dict[str, LearnedWeight]

    @classmethod
    def of(cls, sites: dict[str, tuple[SiteOwner, str]], layers: dict[str, QuantizedLayer]) -> "_Learner":
        steps = {}
        for name, (owner, site) in sites.items():
            start = owner.site_affine(site)
            assert start is not None, f"{name} needs a range first"
            segments = owner.site_segments.get(site) or (0,)
            axis = getattr(owner, "channel_axis", 1)
            steps[name] = LearnedStep(start, owner.site_specs[site].number_format, segments, axis)
        return cls(sites, layers, steps, {path: LearnedWeight(layer) for path, layer in layers.items()})

    def install(self) -> None:
        for name, (owner, site) in self.sites.items():
            owner.taps[site] = self.steps[name]
        for path, layer in self.layers.items():
            layer.weight_trial = self.weights[path].weight
            layer.bias = self.weights[path].bias

    def remove(self, biases: dict[str, nn.Parameter | None]) -> None:
        for owner, site in self.sites.values():
            owner.taps.pop(site, None)
        for path, layer in self.layers.items():
            layer.weight_trial = None
            layer.bias = biases[path]

    def parameters(self) -> list[nn.Parameter]:
        learned = [*self.steps.values(), *self.weights.values()]
        return [parameter for module in learned for parameter in module.parameters()]

    def result(self) -> dict[str, torch.Tensor]:
        found = {f"site.{name}": step.affine().scale for name, step in self.steps.items()}
        for path, weight in self.weights.items():
            found[f"weight.{path}"] = weight.affine().scale
            if weight.bias is not None:
                found[f"bias.{path}"] = weight.bias
        return {name: value.detach().clone() for name, value in found.items()}


@dataclass(frozen=True)
class LearnedSteps(AbstractMethod):
    """LSQ-like learning of all activation steps of a unit together, against the float unit's output.

    Attributes:
        iterations, batch, lr: of Adam on log(step); cosine decay to zero.
        power: exponent p of the L_p loss.
        inputs: ``float`` (as published) or ``quantized`` inputs; the targets are the float model's.
        weights: also learn the weights' steps (as LSQ does) and the biases; the codes stay.
        skip_bits: sites of at least this many bits are not learned (a 16-bit softmax needs none).

    Deviations from the official code: the logarithm of the step is learned, so that it stays positive and the learning rate is
    relative to it; the loss is normalised by its value at the start; a unit that got worse keeps its start. Learning weight
    steps and biases with fixed codes is not in Q-Diffusion; ``weights: false`` leaves it out.
    """

    paper: ClassVar[str] = "Q-Diffusion, arXiv:2302.04304; LSQ arXiv:1902.08153"
    needs: ClassVar[tuple[str, ...]] = ("weight_scales", "input_scales")
    iterations: int = 5000
    batch: int = 32
    lr: float = 4e-4
    power: float = 2.4
    inputs: Literal["quantized", "float"] = "float"
    weights: bool = False
    skip_bits: int = 16
    walk_batch: int = 32

    def __post_init__(self) -> None:
        at_least(self, 1, "iterations", "batch", "walk_batch", "skip_bits")
        positive(self, "lr", high=LARGEST_RATE)
        positive(self, "power")

    def apply(self, model: QuantModel, data: Trajectory, run: Run) -> StepReport:
        if not self.weights and not any(True for _ in model.activation_sites()):
            return StepReport(notes=["no activation site is planned: weights only"])
        for name, (owner, site) in self._sites(model).items():
            check_integral(name, owner.site_specs[site].number_format)
        stream = QUANTIZED if self.inputs == "quantized" else FLOAT
        walk = Walk(model, data, self.walk_batch, run.store(), quantized=stream == QUANTIZED)
        facts: dict[str, dict] = {}
        with run.progress.task("learning steps", len(walk), "blocks") as task:
            for unit in walk:
                sites = self._sites(model, unit.path)
                layers = {path: model.layer(path) for path in unit.layers} if self.weights else {}
                if not sites and not layers:
                    task.advance()
                    continue
                found = run.memo(unit.path, partial(self._learn, unit, stream, sites, layers, run))
                _write(sites, layers, found)
                before, after = (float(v) for v in found["errors"])
                facts[unit.path] = {"error_before": before, "error": after}
                task.advance(note=f"{unit.path}: {after / max(before, 1e-30):.2f}")
        return StepReport(facts, unimproved(facts))

    def effort(self, job: Job) -> Effort:
        found = walking(job, self.walk_batch, streams=2 if self.inputs == "quantized" else 1, scores=True)
        for unit in job.cost.units:
            if job.planned(unit):
                found = found.plus(job.unit(unit, scores=True).over(2 * job.samples, self.walk_batch))
                found = found.plus(*learning(job, unit, self.iterations, self.batch, _FUNCTIONS, scores=True))
        return found

    def _sites(self, model: QuantModel, unit: str = "") -> dict[str, tuple[SiteOwner, str]]:
        return {
            f"{path}.{site}": (owner, site)
            for path, owner, site in model.activation_sites(unit)
            if owner.site_specs[site].bits < self.skip_bits
        }

    def _learn(
        self,
        unit: Unit,
        stream: int,
        sites: dict[str, tuple[SiteOwner, str]],
        layers: dict[str, QuantizedLayer],
        run: Run,
    ) -> dict[str, torch.Tensor]:
        learner = _Learner.of(sites, layers)
        biases = {path: layer.bias for path, layer in layers.items()}
        start = learner.result()
        error = UnitError(unit, stream, self.power)
        before = error.mean(self.walk_batch)
        if before == 0:
            return {**start, "errors": torch.tensor([0.0, 0.0])}
        learner.install()
        try:
            optimise(
                error,
                learner.parameters(),
                run,
                iterations=self.iterations,
                batch=self.batch,
                rate=self._rate,
                scale=before,
            )
            after = error.mean(self.walk_batch)
        finally:
            learner.remove(biases)
        result = learner.result() if after < before else start
        return {**result, "errors": torch.tensor([before, min(after, before)])}

    def _rate(self, i: int) -> float:
        return self.lr * 0.5 * (1 + math.cos(math.pi * i / self.iterations))


def _write(
    sites: dict[str, tuple[SiteOwner, str]], layers: dict[str, QuantizedLayer], found: dict[str, torch.Tensor]
) -> None:
    """Give the unit the steps (and biases) that were found."""
    for name, (owner, site) in sites.items():
        start = owner.site_affine(site)
        assert start is not None
        owner.set_site_affine(site, Affine(found[f"site.{name}"], start.zero_point))
    for path, layer in layers.items():
        layer.weight_scale = found[f"weight.{path}"]
        if layer.bias is not None:
            layer.bias = nn.Parameter(found[f"bias.{path}"], requires_grad=False)
        layer.refresh()
