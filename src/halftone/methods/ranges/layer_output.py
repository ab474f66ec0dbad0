"""Activation ranges by what they do to the layer behind: where a layer's input is clipped, its output decides."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch

from halftone.calibrate.trajectory import Trajectory
from halftone.formats import Affine, fake_quantize
from halftone.formats.segments import along_input
from halftone.foundation.bounds import at_least
from halftone.foundation.seeds import generator
from halftone.methods.contract import AbstractMethod, Run, StepReport
from halftone.methods.effort import Effort, Job
from halftone.methods.importance import Importance
from halftone.models.quant_model import QuantModel
from halftone.nn import QuantizedLayer

End = Literal["low", "high"]
_COARSE = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
_FINE = (1.0, 1.12, 1.06, 0.94, 0.88)
# Each end with the other one as it is, then both again: the first end was sought with a step that the second has made smaller.
_PASSES: tuple[tuple[End, tuple[float, ...]], ...] = (
    ("high", _COARSE),
    ("low", _COARSE),
    ("high", _FINE),
    ("low", _FINE),
)


@dataclass(frozen=True)
class LayerOutput(AbstractMethod):
    """Narrow the range of every layer's input to where the layer's output is wrong by least, clipping against rounding.

    Both ends are sought, segment by segment. A range that holds every value seen is wide because of a few of them; what their
    clipping costs is not told by the values (as the shrink search has it) but by the layer's output, in the calls that show in
    the image: samples count by the influence of their calls where the calibration has measured it.

    Attributes:
        samples: calibration samples to look at.
        skip_bits: sites of at least this many bits keep what they have, as do the operands of attention.

    Deviations from EasyQuant: a mean square instead of a cosine; both ends of the range; the weights' steps stay.
    """

    paper: ClassVar[str] = "EasyQuant, arXiv:2006.16669, section 3"
    needs: ClassVar[tuple[str, ...]] = ("weight_scales", "input_scales")
    samples: int = 128
    batch: int = 16
    skip_bits: int = 16

    def __post_init__(self) -> None:
        at_least(self, 1, "samples", "batch", "skip_bits")

    def apply(self, model: QuantModel, data: Trajectory, run: Run) -> StepReport:
        plan = {
            path: owner
            for path, owner, site in model.activation_sites()
            if isinstance(owner, QuantizedLayer) and owner.site_specs[site].bits < self.skip_bits
        }
        if not plan:
            return StepReport(notes=["no layer's input is planned"])
        found = run.memo("ranges", partial(self._search, model, plan, data, run))
        facts = {}
        for path, layer in plan.items():
            affine = Affine(found[f"{path}.scale"], found[f"{path}.zero_point"])
            layer.set_site_affine("input", affine)
            before, after = (float(v) for v in found[f"{path}.errors"])
            shown = [float(f"{s:.6g}") for s in affine.scale]
            facts[f"{path}.input"] = {"scale": shown, "error_before": before, "error": after}
        return StepReport(facts)

    def effort(self, job: Job) -> Effort:
        samples = min(self.samples, job.samples)
        # In each pass the model itself and every layer's exact output, then the layer once for each candidate.
        passes = 2 * (len(_PASSES) + 1) + sum(len(factors) for _, factors in _PASSES) + 2
        return Effort(job.forward().over(passes * samples, self.batch), 0, self.batch * job.largest_bytes())

    def _search(
        self, model: QuantModel, plan: dict[str, QuantizedLayer], data: Trajectory, run: Run
    ) -> dict[str, torch.Tensor]:
        rows = torch.randperm(len(data), generator=generator(run.seed, run.step, "order"))[: self.samples]
        importance = Importance(len(rows), None if data.weights is None else data.weights[rows])
        searches = {path: _Search(layer, importance) for path, layer in plan.items()}
        owners = [(owner, site) for _, owner, site in model.activation_sites()]
        for owner, site in owners:
            owner.taps[site] = lambda x: x
        for path, layer in plan.items():
            layer.taps["input"] = searches[path]
        batches = torch.arange(len(rows)).split(self.batch)
        try:
            with torch.no_grad(), run.progress.task("ranges", (len(_PASSES) + 1) * len(batches), "batches") as task:
                for which in (*_PASSES, None):
                    for search in searches.values():
                        search.begin(*which) if which else search.begin_last()
                    for index in batches:
                        for search in searches.values():
                            search.index = index
                        args, kwargs = data.rows(rows[index])
                        model.module(*args, **kwargs)
                        task.advance()
                    for search in searches.values():
                        search.settle()
        finally:
            for owner, site in owners:
                owner.taps.pop(site, None)
        return {f"{path}.{what}": value for path, search in searches.items() for what, value in search.found().items()}


class _Search:
    """The search at one layer's input: a tap that sums, for each candidate, how wrong the layer's output is.

    A pass begins, sees every sample once, and settles on the best candidate of each segment. The last one holds what all segments
    have become together against the start.
    """

    def __init__(self, layer: QuantizedLayer, importance: Importance) -> None:
        start = layer.site_affine("input")
        assert start is not None, "a range to start from"
        self.layer, self.importance, self.spec = layer, importance, layer.site_specs["input"]
        self.weight = layer.dequantized_weight()
        grid = self.spec.number_format
        self.low, self.high = (start.scale * (end - start.zero_point) for end in (grid.low, grid.high))
        self.start = self.low, self.high
        self.index = torch.empty(0, dtype=torch.long)  # of the samples that come next
        self.candidates: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.together = False  # whether a candidate concerns all segments at once
        self.errors, self.count = torch.empty(0), 0.0  # [segments, or 1, candidates], sums

    def begin(self, end: End, factors: tuple[float, ...]) -> None:
        # A grid whose zero is fixed has one width: both ends move together.
        one = self.spec.zero != "asymmetric"
        self.candidates = [
            (self.low * (f if one or end == "low" else 1.0), self.high * (f if one or end == "high" else 1.0))
            for f in factors
        ]
        self.errors, self.count = torch.zeros(len(self.low), len(factors), dtype=torch.float64), 0.0

    def begin_last(self) -> None:
        self.candidates, self.together = [self.start, (self.low, self.high)], True
        self.errors, self.count = torch.zeros(1, 2, dtype=torch.float64), 0.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        exact = self.layer.compute(x, self.weight)
        for segment, errors in enumerate(self.errors):
            moves = self.together | (torch.arange(len(self.low), device=self.low.device) == segment)
            for i, (low, high) in enumerate(self.candidates):
                trial = self.spec.affine(torch.where(moves, low, self.low), torch.where(moves, high, self.high))
                wrong = self.layer.compute(self._quantized(x, trial), self.weight) - exact
                total, count = self.importance.sum(wrong.square(), self.index)
                errors[i] += total
        self.count += count
        return x

    def settle(self) -> None:
        chosen = self.errors.argmin(1).expand(len(self.low))  # the first of equals, which changes nothing
        low, high = (torch.stack(ends) for ends in zip(*self.candidates, strict=True))
        here = torch.arange(len(chosen))
        self.low, self.high = low[chosen, here], high[chosen, here]

    def found(self) -> dict[str, torch.Tensor]:
        best = self.spec.affine(self.low, self.high)
        before, after = (float(error) for error in self.errors[0] / self.count)
        return {
            "scale": best.scale,
            "zero_point": best.zero_point,
            "errors": torch.tensor([before, min(before, after)]),
        }

    def _quantized(self, x: torch.Tensor, affine: Affine) -> torch.Tensor:
        segments = self.layer.segments
        return fake_quantize(x, along_input(affine, segments, x.ndim, self.layer.channel_axis), self.spec.number_format)
