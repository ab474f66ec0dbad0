"""What a method will take, before it runs: work to be computed, and memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch

from halftone.models.cost import FLOAT_BYTES, ModelCost, UnitCost, Work

BACKWARD = 3  # a forward and the two products of its backward, in forwards


@dataclass(frozen=True)
class Job:
    """The circumstances that a method's effort follows from.

    Attributes:
        samples: of the calibration.
        quantized: paths of the planned layers.
        operands: whether operands of attention are simulated, which needs whole score matrices.
    """

    cost: ModelCost
    samples: int
    quantized: frozenset[str]
    operands: bool = False

    def planned(self, unit: UnitCost) -> int:
        """Return the number of planned layers of ``unit``."""
        return sum(layer.path in self.quantized for layer in unit.layers)

    def weights(self) -> int:
        """Return the number of weights of all planned layers."""
        return sum(layer.weights for unit in self.cost.units for layer in unit.layers if layer.path in self.quantized)

    def forward(self, scores: bool = False) -> Work:
        """Return the work of one sample through the whole model; with ``scores`` where attention's operands are simulated."""
        extra = _of_scores(self.cost.scores) if scores and self.operands else Work()
        return self.cost.forward + extra

    def unit(self, unit: UnitCost, scores: bool = False) -> Work:
        """Return the work of one sample through ``unit``."""
        return unit.work + (_of_scores(unit.scores) if scores and self.operands else Work())

    def largest_bytes(self, scores: bool = False) -> int:
        """Return the bytes of the largest tensors that one sample's forward has at once: what goes in, what comes out, and one
        between."""
        units = self.cost.units
        most = max((unit.largest for unit in units), default=0)
        if scores and self.operands:
            most = max(most, *(unit.largest_scores for unit in units))
        return 3 * FLOAT_BYTES * most


def _of_scores(scores: int) -> Work:
    return Work(elements=8 * scores)  # scaled, softmax, rounded onto a grid and back


@dataclass(frozen=True)
class Effort:
    """What one step takes.

    Attributes:
        held: bytes of activations that a walk keeps, which a memory bound can spill to disk.
        working: bytes beside them and beside the model's own.
    """

    work: Work = field(default_factory=Work)
    held: int = 0
    working: int = 0

    def plus(self, work: Work, working: float = 0) -> "Effort":
        """Return the effort with more work; ``working`` bytes that are not needed at the same time as the others."""
        return Effort(self.work + work, self.held, max(self.working, int(working)))


def walking(job: Job, batch: int, streams: int = 2, scores: bool = False) -> Effort:
    """Return what it takes to carry all samples through the model unit by unit (:mod:`halftone.calibrate.walk`)."""
    work = job.forward() + (job.forward(scores) if streams > 1 else Work())
    held = streams * job.cost.stream_bytes * job.samples
    return Effort(work.over(job.samples, batch), held, min(batch, job.samples) * job.largest_bytes(scores))


def learning(
    job: Job, unit: UnitCost, iterations: int, batch: int, per_weight: int, scores: bool = False
) -> tuple[Work, int]:
    """Return the work and the working bytes of ``iterations`` with gradients through ``unit``.

    Args:
        per_weight: functions of the size of the unit's weights in each iteration, the optimizer's among them.
    """
    once = job.unit(unit, scores).over(min(batch, job.samples), batch).times(BACKWARD)
    own = Work(elements=per_weight * unit.weights, calls=per_weight * job.planned(unit))
    # A gradient needs what the forward made; each weight has its variable, its gradient, two moments, and copies of itself.
    kept = min(batch, job.samples) * job.unit(unit, scores).elements + 8 * unit.weights
    return (once + own).times(iterations), int(FLOAT_BYTES * kept)


@cache
def seconds_an_element(device: torch.device) -> float:
    """Return what a function takes for one number of a large tensor on ``device``, measured once; takes milliseconds."""
    x = torch.zeros(2**20, device=device)
    return _least(lambda: torch.sigmoid(x)) / len(x)


@cache
def seconds_a_mac(device: torch.device) -> float:
    """Return what a float32 product takes for one multiply-accumulate on ``device``, measured once; takes milliseconds."""
    x = torch.zeros(512, 512, device=device)
    return _least(lambda: x @ x) / len(x) ** 3


def _least(compute: Callable[[], torch.Tensor]) -> float:
    taken = []
    for _ in range(4):
        began = time.perf_counter()
        float(compute().view(-1)[0])  # and so waits for a GPU
        taken.append(time.perf_counter() - began)
    return min(taken)
