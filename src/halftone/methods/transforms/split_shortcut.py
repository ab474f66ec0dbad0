"""Split shortcuts: separate scales for the two tensors that a U-Net's shortcut convolution reads concatenated."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

import torch

from halftone.calibrate.trajectory import Trajectory
from halftone.foundation.bounds import at_least
from halftone.methods.contract import AbstractMethod, Run, StepReport
from halftone.methods.effort import Effort, Job
from halftone.methods.look import BATCH, look_at_inputs
from halftone.models.policy import Plan
from halftone.models.quant_model import QuantModel
from halftone.quant.bimodality import bimodality


@dataclass(frozen=True)
class SplitShortcut(AbstractMethod):
    """Quantize the parts of a channel concatenation with scales of their own, weights and activations alike.

    Q(X) Q(W) = Q1(X1) Q1(W1) + Q2(X2) Q2(W2). Where the parts meet is read from the model, not typed in. Every layer fed
    *directly* by a concatenation qualifies; in diffusers' U-Nets these are the up path's shortcut convolutions.

    Attributes:
        roles: glob of the roles that may be split; other layers fed by a concatenation (the sine and cosine of a time
            embedding) are left alone.
        select: ``all`` of them (or ``on``), ``none`` (``off``), or ``auto``: those whose bimodality score reaches ``threshold``.
            YAML reads a bare ``on`` or ``off`` as true or false, which mean the same.
        threshold: in dB, see :func:`halftone.quant.bimodality.bimodality`.
        samples: calibration samples used for the score.

    Deviation: the official code splits all shortcuts of a model, or none, by a switch.
    """

    paper: ClassVar[str] = "Q-Diffusion, arXiv:2302.04304"
    before: ClassVar[tuple[str, ...]] = ("weight_scales",)
    roles: str = "*shortcut*"
    select: Literal["auto", "all", "none", "on", "off", True, False] = "auto"
    threshold: float = 1.0
    samples: int = 64

    def __post_init__(self) -> None:
        at_least(self, 1, "samples")

    def candidates(self, concatenated: Mapping[str, tuple[int, ...]], plan: Plan) -> dict[str, tuple[int, ...]]:
        """Return the channels of the parts of those layers, of all that read a concatenation, that may be split."""
        planned = plan.quantized()
        return {
            path: parts
            for path, parts in concatenated.items()
            if path in planned and fnmatchcase(plan.layers[path].role, self.roles)
        }

    @property
    def chosen(self) -> str:
        """``all``, ``none`` or ``auto``."""
        words: dict[str | bool, str] = {"on": "all", True: "all", "off": "none", False: "none"}
        return words.get(self.select, str(self.select))

    def apply(self, model: QuantModel, data: Trajectory, run: Run) -> StepReport:
        planned = model.plan.quantized()
        candidates = self.candidates(model.concatenated, model.plan)
        ranges = run.memo("ranges", lambda: observe_parts(model, data, candidates, self.samples))
        layers = {}
        for path, parts in candidates.items():
            score = bimodality(ranges[path], model.originals[path], parts)
            split = self.chosen == "all" or (self.chosen == "auto" and score >= self.threshold)
            if split:
                model.assign(path, replace(planned[path], segments=parts))
            layers[path] = {"parts": list(parts), "score_db": round(score, 3), "split": split}
            layers[path]["ranges"] = [[round(float(v), 4) for v in part] for part in ranges[path]]
        return StepReport(layers)

    def effort(self, job: Job) -> Effort:
        samples = min(self.samples, job.samples)
        return Effort(job.forward().over(samples, BATCH), 0, min(BATCH, samples) * job.largest_bytes())


def observe_parts(
    model: QuantModel, data: Trajectory, layers: dict[str, tuple[int, ...]], samples: int
) -> dict[str, torch.Tensor]:
    """Return ``[parts, 2]`` smallest and largest input values of each part of each layer, over ``samples`` spread evenly."""
    found = {path: torch.zeros(len(parts), 2) for path, parts in layers.items()}

    def looker(path: str, parts: tuple[int, ...]) -> Callable[[torch.Tensor], None]:
        def look(x: torch.Tensor) -> None:
            dim = 1 if x.ndim == 4 else -1
            for row, part in zip(found[path], x.split(list(parts), dim=dim), strict=True):
                row[0], row[1] = min(row[0], part.amin()), max(row[1], part.amax())

        return look

    look_at_inputs(model, data, {path: looker(path, parts) for path, parts in layers.items()}, samples)
    return found
