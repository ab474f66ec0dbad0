"""Learn the step sizes of a unit's quantizers, with its codes as they are."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch

from halftone.calibrate.trajectory import Trajectory
from halftone.calibrate.walk import FLOAT, QUANTIZED, Unit, Walk
from halftone.foundation.bounds import at_least, positive
from halftone.methods.contract import AbstractMethod, Run, StepReport
from halftone.methods.effort import Effort, Job, learning, walking
from halftone.methods.fit import LARGEST_RATE, UnitError, check_integral, cosine, optimise, unimproved
from halftone.methods.learned import Learner, write
from halftone.models.quant_model import QuantModel
from halftone.nn import QuantizedLayer
from halftone.nn.sites import SiteOwner

_FUNCTIONS = 12  # of the size of a weight in each iteration; the steps themselves are few


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
        with run.progress.task("learning steps", len(walk), "blocks", weights=walk.seconds) as task:
            for unit in walk:
                sites = self._sites(model, unit.path)
                layers = {path: model.layer(path) for path in unit.layers} if self.weights else {}
                if not sites and not layers:
                    task.advance()
                    continue
                found = run.memo(unit.path, partial(self._learn, unit, stream, sites, layers, run))
                write(sites, layers, found)
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
        learner = Learner.of(sites, layers)
        start = learner.result()
        error = UnitError(unit, stream, self.power)
        before = error.mean(self.walk_batch)
        if before == 0:
            return learner.better(start, before, before)
        with learner.installed():
            optimise(
                error,
                learner.parameters(),
                run,
                iterations=self.iterations,
                batch=self.batch,
                rate=cosine(self.lr, self.iterations),
                scale=before,
            )
            after = error.mean(self.walk_batch)
        return learner.better(start, before, after)
