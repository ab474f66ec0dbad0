"""Reconstruction of the whole denoiser at once: what is not a code is learned on what the model puts out."""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from halftone.calibrate.trajectory import Trajectory
from halftone.foundation.bounds import at_least, between, positive
from halftone.foundation.seeds import generator
from halftone.methods.contract import AbstractMethod, Run, StepReport
from halftone.methods.effort import Effort, Job, learning
from halftone.methods.fit import LARGEST_RATE, optimise
from halftone.methods.learned import Learner
from halftone.methods.output_error import DENOISER, OutputError
from halftone.models.quant_model import QuantModel

_FUNCTIONS = 12  # of the size of a weight in each iteration


@dataclass(frozen=True)
class Network(AbstractMethod):
    """Learn the weights' steps, the biases and the activations' steps of all layers together, with the codes as they are.

    A block's error does not say what becomes of it: some is cancelled further down, some amplified, and what all blocks have in
    common adds up. This is the coarsest of BRECQ's granularities, affordable because only steps and biases move: the codes, nearly
    all of the numbers, are left to the block-wise methods before it.

    Attributes:
        iterations, batch: of Adam.
        lr: learning rate of log(step) and of the biases; cosine decay to zero.
        held_out: share of the samples that is not learned from. What was learned is kept only if their error fell.
        skip_bits: activation sites of at least this many bits are not learned.
        walk_batch: samples a forward where there are no gradients.

    Deviation from BRECQ: not the rounding is learned but what AdaRound leaves fixed, and samples are weighted by the influence of
    their calls on the image, where the calibration has measured it.
    """

    paper: ClassVar[str] = "BRECQ, arXiv:2102.05426, section 3.2 (network-wise); LSQ arXiv:1902.08153"
    needs: ClassVar[tuple[str, ...]] = ("weight_scales", "input_scales")
    iterations: int = 1000
    batch: int = 16
    lr: float = 1e-3
    held_out: float = 0.125
    skip_bits: int = 16
    walk_batch: int = 32

    def __post_init__(self) -> None:
        at_least(self, 1, "iterations", "batch", "walk_batch", "skip_bits")
        positive(self, "lr", high=LARGEST_RATE)
        between(self, 0, 0.9, "held_out")

    def apply(self, model: QuantModel, data: Trajectory, run: Run) -> StepReport:
        learner = self._learner(model)
        found = run.memo("network", partial(self._learn, model, learner, data, run))
        learner.write(found)
        before, after = (float(v) for v in found["errors"])
        facts = {"error_before": before, "error": after}
        notes = [] if after < before else ["the denoiser as a whole did not get better and keeps what it had"]
        return StepReport({DENOISER: facts}, notes)

    def effort(self, job: Job) -> Effort:
        found = Effort().plus(job.forward(scores=True).over(3 * job.samples, self.walk_batch))
        work, working = [], 0
        for unit in job.cost.units:
            spent, kept = learning(job, unit, self.iterations, self.batch, _FUNCTIONS, scores=True)
            work.append(spent)
            working += kept  # the backward needs what all units made
        for spent in work:
            found = found.plus(spent, working)
        return found

    def _learner(self, model: QuantModel) -> Learner:
        sites = {f"{path}.{site}": (owner, site) for path, owner, site in model.activation_sites()}
        learner = Learner.of(sites, {path: model.layer(path) for path in model.plan.quantized()})
        for name, (owner, site) in sites.items():
            learner.steps[name].theta.requires_grad_(owner.site_specs[site].bits < self.skip_bits)
        return learner

    def _learn(self, model: QuantModel, learner: Learner, data: Trajectory, run: Run) -> dict[str, torch.Tensor]:
        order = torch.randperm(len(data), generator=generator(run.seed, run.step, "held out"))
        held, seen = order.tensor_split([int(self.held_out * len(data))])
        error = OutputError(model, data, seen, self.walk_batch)
        check = OutputError(model, data, held, self.walk_batch) if len(held) else error
        biases = {path: layer.bias for path, layer in learner.layers.items()}
        start = learner.result()
        learner.install()
        try:
            before, scale = check.mean(self.walk_batch), error.mean(self.walk_batch)
            if scale > 0:
                free = [parameter for parameter in learner.parameters() if parameter.requires_grad]
                how = {"iterations": self.iterations, "batch": self.batch, "rate": self._rate, "scale": scale}
                optimise(error, free, run, **how)  # type: ignore[arg-type]
            after = check.mean(self.walk_batch)
        finally:
            learner.remove(biases)
        result = learner.result() if after < before else start
        return {**result, "errors": torch.tensor([before, min(after, before)])}

    def _rate(self, i: int) -> float:
        return self.lr * 0.5 * (1 + math.cos(math.pi * i / self.iterations))
