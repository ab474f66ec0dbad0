"""Reconstruction of the whole denoiser at once: what is not a code is learned on what the model puts out."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from halftone.calibrate.trajectory import Trajectory
from halftone.foundation.bounds import at_least, between, positive
from halftone.foundation.seeds import generator
from halftone.methods.contract import AbstractMethod, Run, StepReport
from halftone.methods.effort import Effort, Job, learning
from halftone.methods.fit import LARGEST_RATE, cosine, optimise
from halftone.methods.learned import Learner, write
from halftone.methods.output_error import DENOISER, OutputError
from halftone.models.cost import FLOAT_BYTES, Work
from halftone.models.quant_model import QuantModel
from halftone.nn import QuantizedLayer
from halftone.nn.sites import SiteOwner

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
        gigabytes: what the backward may keep of the forward. Where one sample needs more, every unit keeps only its inputs and
            computes the rest again; then a batch goes through in as many parts as it takes. The gradients are the same.
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
    gigabytes: float = 4.0
    held_out: float = 0.125
    skip_bits: int = 16
    walk_batch: int = 32

    def __post_init__(self) -> None:
        at_least(self, 1, "iterations", "batch", "walk_batch", "skip_bits")
        positive(self, "lr", high=LARGEST_RATE)
        positive(self, "gigabytes")
        between(self, 0, 0.9, "held_out")

    def apply(self, model: QuantModel, data: Trajectory, run: Run) -> StepReport:
        sites = {f"{path}.{site}": (owner, site) for path, owner, site in model.activation_sites()}
        layers = {path: model.layer(path) for path in model.plan.quantized()}
        found = run.memo("network", partial(self._learn, model, sites, layers, data, run))
        write(sites, layers, found)
        before, after = (float(v) for v in found["errors"])
        facts = {"error_before": before, "error": after}
        notes = [] if after < before else ["the denoiser as a whole did not get better and keeps what it had"]
        return StepReport({DENOISER: facts}, notes)

    def effort(self, job: Job) -> Effort:
        found = Effort().plus(job.forward(scores=True).over(3 * job.samples, self.walk_batch))
        work = Work()
        for unit in job.cost.units:
            work = work + learning(job, unit, self.iterations, self.batch, _FUNCTIONS, scores=True)[0]
        sample = FLOAT_BYTES * job.forward(scores=True).elements
        if sample > self._limit:
            work = work.times(4 / 3)  # a second forward
            largest = max(job.unit(unit, scores=True).elements for unit in job.cost.units)
            sample = FLOAT_BYTES * (largest + 2 * sum(unit.largest for unit in job.cost.units))
        # Each weight has a copy, and its gradient.
        return found.plus(work, self._at_once(sample) * sample + 2 * FLOAT_BYTES * job.weights())

    @property
    def _limit(self) -> float:
        return self.gigabytes * 1e9

    def _at_once(self, sample: float) -> int:
        """Return how many samples go through together, of each of which the backward keeps ``sample`` bytes."""
        return max(1, min(self.batch, int(self._limit / max(sample, 1.0))))

    def _learn(
        self,
        model: QuantModel,
        sites: dict[str, tuple[SiteOwner, str]],
        layers: dict[str, QuantizedLayer],
        data: Trajectory,
        run: Run,
    ) -> dict[str, torch.Tensor]:
        order = torch.randperm(len(data), generator=generator(run.seed, run.step, "held out"))
        held, seen = order.tensor_split([int(self.held_out * len(data))])
        error = OutputError(model, data, seen, self.walk_batch)
        check = OutputError(model, data, held, self.walk_batch) if len(held) else error
        learner = Learner.of(sites, layers)
        for name, (owner, site) in sites.items():
            # Not left out: a gradient passes only through a site that is in the learner.
            learner.steps[name].theta.requires_grad_(owner.site_specs[site].bits < self.skip_bits)
        start = learner.result()
        with learner.installed():
            before, scale = check.mean(self.walk_batch), error.mean(self.walk_batch)
            if scale > 0:
                self._optimise(model, learner, error, scale, run)
            after = check.mean(self.walk_batch)
        return learner.better(start, before, after)

    def _optimise(self, model: QuantModel, learner: Learner, error: OutputError, scale: float, run: Run) -> None:
        with ExitStack() as stack:
            sample = _kept_bytes(error)
            if sample > self._limit:
                stack.enter_context(_computed_again(model))
                sample = _kept_bytes(error)
            optimise(
                error,
                [parameter for parameter in learner.parameters() if parameter.requires_grad],
                run,
                iterations=self.iterations,
                batch=self.batch,
                rate=cosine(self.lr, self.iterations),
                scale=scale,
                at_once=self._at_once(sample),
            )


@contextmanager
def _computed_again(model: QuantModel) -> Iterator[None]:
    """Let every unit keep only its inputs for the backward, which computes the rest anew."""
    units: dict[str, nn.Module] = {}
    for path, module in model.module.named_modules():
        inside = any(path.startswith(f"{unit}.") for unit in units)
        if path and not inside and model.architecture.is_unit(path, module):
            units[path] = module
    own = {path: vars(module).get("forward") for path, module in units.items()}
    for module in units.values():
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    try:
        yield
    finally:
        for path, module in units.items():
            # accelerate, for one, puts a forward of its own there.
            if own[path] is None:
                del module.forward
            else:
                module.forward = own[path]  # type: ignore[assignment]


def _kept_bytes(error: OutputError) -> int:
    """Return the bytes that the backward keeps of a forward for each sample more: weights are kept once, whatever the batch."""
    one, two = (_kept_by(error, count) for count in (1, 2))
    return two - one


def _kept_by(error: OutputError, count: int) -> int:
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        # By storage: what several functions keep is there once.
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        error.loss(torch.zeros(count, dtype=torch.long))
    return sum(kept.values())
