"""What every method that learns numbers of a unit shares: how wrong the unit is, and the loop that makes it less so."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from halftone.calibrate.walk import Unit, outputs
from halftone.formats import AbstractFormat
from halftone.foundation.errors import CalibrationError, FormatError
from halftone.foundation.seeds import generator
from halftone.foundation.wording import some
from halftone.methods.contract import Run
from halftone.methods.importance import Importance

# Of a learning rate: Adam moves a number by about as much in each step, and nothing that is learned here is so large.
LARGEST_RATE = 1000.0


class UnitError:
    """How far a unit's outputs are from their float targets: the mean of ``|out - target| ** power``.

    A unit with several outputs (a two-stream block returns text and picture) is as wrong as its outputs are on average. Each is
    divided by the mean of ``|target| ** power`` first, so that the larger one does not drown the other, and the result is
    brought back to the scale of the outputs. For a unit with one output that changes nothing, not even a bit.

    A sample counts as much as an error of its call shows in the image, where the calibration has measured that.

    Args:
        stream: what the unit is fed, ``FLOAT`` or ``QUANTIZED``.
    """

    def __init__(self, unit: Unit, stream: int, power: float = 2.0) -> None:
        self.unit, self.stream, self.power = unit, stream, power
        self.path, self.importance = unit.path, Importance(len(unit), unit.weights)
        self.weights = self._balance()

    def loss(self, index: torch.Tensor) -> torch.Tensor:
        """Return the error over the samples at ``index`` ``[b]``, drawn by their importance: gradients flow through it."""
        terms = [self.importance.mean(self._power(difference), index) for difference in self._differences(index)]
        return sum(w * term for w, term in zip(self.weights, terms, strict=True))  # type: ignore[return-value]

    def mean(self, batch: int) -> float:
        """Return the error over all samples, summed in float64, ``batch`` of them a forward; infinite when it is no number."""
        totals, counts = [0.0] * len(self.weights), [0.0] * len(self.weights)
        with torch.no_grad():
            for index in torch.arange(len(self.unit)).split(batch):
                for i, difference in enumerate(self._differences(index)):
                    total, count = self.importance.sum(self._power(difference.double()), index)
                    totals[i] += total
                    counts[i] += count
        total = sum(w * total / (count or 1.0) for w, total, count in zip(self.weights, totals, counts, strict=True))
        return total if math.isfinite(total) else math.inf

    def _differences(self, index: torch.Tensor) -> list[torch.Tensor]:
        args, kwargs, targets = self.unit.minibatch(self.stream, index)
        out = outputs(self.unit.module(*args, **kwargs))
        return [mine - target for mine, target in zip(out, targets, strict=True)]

    def _power(self, x: torch.Tensor) -> torch.Tensor:
        return x.square() if self.power == 2 else x.abs().pow(self.power)

    def _balance(self) -> list[float]:
        """Return each output's weight: its share in the mean, over its size relative to the mean size."""
        trees = [outputs(tree) for tree in self.unit.targets]
        count = len(trees[0])
        if count == 1:
            return [1.0]  # and the targets need not be read
        sizes = [sum(float(self._power(tree[i].double()).mean()) for tree in trees) / len(trees) for i in range(count)]
        middle = sum(sizes) / count
        # An output that is zero throughout has no size of its own.
        return [(middle / size if size > 0 else 1.0) / count for size in sizes]


def cosine(rate: float, iterations: int) -> Callable[[int], float]:
    """Return the learning rate by iteration that falls from ``rate`` to zero along half a cosine."""
    return lambda i: rate * 0.5 * (1 + math.cos(math.pi * i / iterations))


class Error(Protocol):
    """What :func:`optimise` lowers: something called ``path`` whose samples are drawn by their importance."""

    path: str
    importance: Importance

    def loss(self, index: torch.Tensor) -> torch.Tensor:
        """Return the error over the samples at ``index`` ``[b]``."""


def optimise(
    error: Error,
    parameters: list[nn.Parameter],
    run: Run,
    *,
    iterations: int,
    batch: int,
    rate: Callable[[int], float],
    scale: float,
    at_once: int | None = None,
    penalty: Callable[[int], torch.Tensor | float] | None = None,
) -> None:
    """Lower ``error / scale + penalty`` with Adam, on ``batch`` samples drawn by their importance in each iteration.

    Args:
        rate: the learning rate of iteration ``i``.
        scale: what the error is divided by, such as its value at the start.
        at_once: samples of a batch that go through the network together; their gradients are added. None for all of them.
        penalty: added in iteration ``i``.

    Raises:
        CalibrationError: a loss that is NaN or infinite.
    """
    optimizer = torch.optim.Adam(parameters, lr=rate(0))
    random = generator(run.seed, run.step, error.path)
    # The run may be under no_grad; this part needs gradients.
    with torch.enable_grad(), run.progress.task(error.path, iterations, "iterations") as task:
        for i in range(iterations):
            for group in optimizer.param_groups:
                group["lr"] = rate(i)
            index = error.importance.draw(batch, random)
            optimizer.zero_grad(set_to_none=True)
            for number, part in enumerate(index.split(at_once or len(index))):
                loss = error.loss(part) * (len(part) / len(index)) / scale
                if penalty is not None and number == 0:
                    loss = loss + penalty(i)
                if not bool(torch.isfinite(loss)):
                    got = f"{float(loss.detach())} in iteration {i}"
                    raise CalibrationError(
                        f"steps.{run.step}: {error.path}", "a finite loss", got, "Lower the step's lr."
                    )
                loss.backward()
            optimizer.step()
            task.advance()


def unimproved(units: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence about the units that learning did not make better, none where all are; facts by unit path."""
    kept = [
        path for path, facts in units.items() if facts["error_before"] > 0 and facts["error"] >= facts["error_before"]
    ]
    if not kept:
        return []
    return [f"{len(kept)} of {len(units)} units did not get better and keep what they had: {some(kept)}"]


def check_integral(where: str, grid: AbstractFormat) -> None:
    """Raise a FormatError unless ``grid`` is made of consecutive integers: what steps from one code to the next needs."""
    if not grid.integral:
        fix = "Round such a format with rounding/nearest or rounding/gptq, and leave its step as it is."
        raise FormatError(where, "a grid of consecutive integers", grid.name, fix)
