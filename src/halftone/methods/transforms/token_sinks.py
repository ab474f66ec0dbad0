"""Token sinks: tokens that dwarf all others and are the same in every prompt stay float, and their outputs are stored."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

import torch
from torch import nn

from halftone.calibrate.trajectory import Trajectory
from halftone.foundation.bounds import at_least
from halftone.methods.contract import AbstractMethod, Run, StepReport
from halftone.methods.effort import Effort, Job
from halftone.methods.look import BATCH, look_at_inputs
from halftone.models.quant_model import QuantModel
from halftone.nn import AttentionOperands, QuantLinear

_OPERANDS = ("k", "v")  # an attention's operands that have a row for each text token


@dataclass(frozen=True)
class TokenSinks(AbstractMethod):
    """Keep the leading text tokens out of the quantization of keys and values.

    In a causal text encoder the first token sees nothing but itself, so it is the same in all prompts, the empty one of
    classifier-free guidance included; in CLIP it is some sixty times larger than the others, which share one range with it. Its
    key and value are computed once with the float weights and stored; the ranges are those of the other tokens, and so are the
    ranges of the attention's own operands k and v.

    A token counts as a sink if its values differ between the calibration samples by no more than ``tolerance`` of the largest,
    and the largest is at least ``ratio`` times the median token's. Kept are sinks from the first token on, up to the first token
    that is none.

    Attributes:
        roles: globs of the layers that read text tokens; a model without such layers is left as it is.
        select: ``auto``, or ``none`` for the comparison without.
        samples: calibration samples that are looked at.

    Deviation: MixDQ keeps the first token of every model; here it must be found to be one.
    """

    paper: ClassVar[str] = "MixDQ, arXiv:2405.17873, section 4.1"
    before: ClassVar[tuple[str, ...]] = ("weight_scales",)
    roles: tuple[str, ...] = ("attention.cross.k", "attention.cross.v")
    select: Literal["auto", "none"] = "auto"
    ratio: float = 4.0
    tolerance: float = 1e-3
    samples: int = 64

    def __post_init__(self) -> None:
        at_least(self, 1, "samples")
        at_least(self, 1.0, "ratio")

    def apply(self, model: QuantModel, data: Trajectory, run: Run) -> StepReport:
        paths = self._layers(model)
        if not paths:
            return StepReport()
        seen = run.memo("extremes", lambda: extremes(model, data, paths, self.samples))
        layers, notes = {}, []
        zeros = data.identity.get("empty_prompt") == "zeros"
        if zeros:
            notes.append(
                "this pipeline gives an empty prompt as zeros: no token is the same in every call, none is kept"
            )
        if all(torch.equal(seen[f"{path}.low"], seen[f"{path}.high"]) for path in paths):
            notes.append("all calibration samples have the same text: no token can be told from a sink, none is kept")
        for path in paths:
            low, high = seen[f"{path}.low"], seen[f"{path}.high"]
            keep = 0 if zeros else sinks(low, high, self.ratio, self.tolerance)
            layers[path] = {"kept": keep, "times_the_median": round(_prominence(low, high), 2)}
            if keep:
                self._keep(model, path, low[:keep])
        return StepReport(layers, notes)

    def effort(self, job: Job) -> Effort:
        samples = min(self.samples, job.samples)
        return Effort(job.forward().over(samples, BATCH), 0, min(BATCH, samples) * job.largest_bytes())

    def _layers(self, model: QuantModel) -> list[str]:
        """Return the linears with quantized inputs that read text tokens."""
        planned = model.plan.quantized()
        return [
            path
            for path, scheme in planned.items()
            if any(fnmatchcase(model.plan.layers[path].role, glob) for glob in self.roles)
            and scheme.input is not None
            and isinstance(model.layer(path), QuantLinear)
            and self.select == "auto"
        ]

    @staticmethod
    def _keep(model: QuantModel, path: str, tokens: torch.Tensor) -> None:
        scheme, layer = model.plan.quantized()[path], model.layer(path)
        assert isinstance(layer, QuantLinear) and scheme.input is not None
        model.assign(path, replace(scheme, input=replace(scheme.input, keep=len(tokens))))
        layer.keep_tokens(tokens, nn.functional.linear(tokens, model.originals[path], model.biases[path]))
        attention = path.rpartition(".")[0]
        operands = getattr(model.module.get_submodule(attention), "operands", None)
        if isinstance(operands, AttentionOperands):
            # Both the plan's own and the one that runs.
            for specs in (operands.site_specs, model.plan.operands[attention]):
                specs |= {site: replace(specs[site], keep=len(tokens)) for site in _OPERANDS if site in specs}


def sinks(low: torch.Tensor, high: torch.Tensor, ratio: float, tolerance: float) -> int:
    """Return how many leading tokens are sinks, given the least and the greatest value ``[tokens, channels]`` of each number."""
    size, spread = torch.maximum(low.abs(), high.abs()).amax(-1), (high - low).amax(-1)
    if len(size) < 2 or bool((spread == 0).all()):
        return 0
    found = (spread <= tolerance * size) & (size >= ratio * size.median())
    return int(found.long().cumprod(0).sum())


def _prominence(low: torch.Tensor, high: torch.Tensor) -> float:
    """Return how many times larger the first token is than the median one."""
    size = torch.maximum(low.abs(), high.abs()).amax(-1)
    return float(size[0] / size.median().clamp(min=1e-12))


def extremes(model: QuantModel, data: Trajectory, paths: list[str], samples: int) -> dict[str, torch.Tensor]:
    """Return ``PATH.low`` and ``PATH.high`` ``[tokens, channels]`` of each layer's inputs, over ``samples`` spread evenly."""
    found: dict[str, torch.Tensor] = {}

    def looker(path: str) -> Callable[[torch.Tensor], None]:
        def look(x: torch.Tensor) -> None:
            for name, side, pick in (("low", x.amin(0), torch.minimum), ("high", x.amax(0), torch.maximum)):
                key = f"{path}.{name}"
                found[key] = pick(found[key], side) if key in found else side

        return look

    look_at_inputs(model, data, {path: looker(path) for path in paths}, samples)
    return found
