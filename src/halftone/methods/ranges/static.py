"""Static activation ranges: one scale per site for all timesteps, from the calibration samples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from halftone.calibrate.trajectory import Trajectory
from halftone.formats import Affine
from halftone.foundation.bounds import at_least
from halftone.foundation.errors import CalibrationError
from halftone.foundation.seeds import generator
from halftone.foundation.wording import some
from halftone.methods.contract import AbstractMethod, Run, StepReport
from halftone.methods.effort import Effort, Job
from halftone.models.cost import Work
from halftone.models.quant_model import QuantModel
from halftone.nn.sites import SiteOwner
from halftone.quant import QuantSpec
from halftone.quant.weights import passes, range_estimator

# Of the range that was seen, on either side, for sites of more than 8 bits. Their rounding is invisible at twice the step, while a
# tail that a few calibration samples did not have is clipped in the same place in every call: noise at the first layer's input.
_MARGIN = 0.5


@dataclass(frozen=True)
class Static(AbstractMethod):
    """Fit every activation site's range on the float-activation model with its weights as they are.

    Attributes:
        range: a range estimator by name, or a mapping with its ``name`` and fields.
        samples: calibration samples to look at, drawn in random order (in step order a moving average would forget the noisy
            steps).
        at_most: values kept per site, segment and batch for the search; extremes are always among them.
    """

    paper: ClassVar[str] = "Q-Diffusion, arXiv:2302.04304"
    needs: ClassVar[tuple[str, ...]] = ("weight_scales",)  # the input site of a layer exists once the layer holds codes
    gives: ClassVar[tuple[str, ...]] = ("input_scales",)
    range: str | dict[str, Any] = "shrink"
    samples: int = 256
    batch: int = 16
    at_most: int = 4096

    def __post_init__(self) -> None:
        at_least(self, 1, "samples", "batch", "at_most")
        range_estimator(self.range)  # a recipe that names none is refused when it is read

    def apply(self, model: QuantModel, data: Trajectory, run: Run) -> StepReport:
        plan = {f"{path}.{site}": (owner, site) for path, owner, site in model.activation_sites()}
        if not plan:
            return StepReport(notes=["no activation site is planned: weights only"])
        for owner, site in plan.values():
            owner.set_site_affine(site, None)
        seen = observe(model, data, plan, self, run)
        layers = {}
        for name, (owner, site) in plan.items():
            spec, columns = owner.site_specs[site], seen[name]
            affine = fit_site(name, columns, spec, self.range)
            owner.set_site_affine(site, affine)
            layers[name] = {"scale": [float(f"{s:.6g}") for s in affine.scale]}
        return StepReport(layers, constant_sites(seen))

    def effort(self, job: Job) -> Effort:
        samples = min(self.samples, job.samples)
        kept = self.at_most * -(-samples // self.batch) * len(job.quantized)
        search = Work(elements=passes(self.range) * kept, calls=passes(self.range) * len(job.quantized))
        seen = job.forward(scores=True).over(samples, self.batch)
        return Effort(seen + search, 0, min(self.batch, samples) * job.largest_bytes(scores=True))


def fit_site(
    name: str, segments: list[list[torch.Tensor]], spec: QuantSpec, described: str | Mapping[str, Any]
) -> Affine:
    """Return the affine ``[S]`` of a site from its kept values, a list of batches ``[1, n]`` for each segment.

    Sites of more than 8 bits get a margin on both sides.

    Raises:
        CalibrationError: a value that is NaN or infinite.
    """
    lows, highs = [], []
    for batches in segments:
        if not batches or not all(torch.isfinite(batch).all() for batch in batches):
            got = "NaN or infinity" if batches else "nothing: the site was never reached"
            raise CalibrationError(f"activations at {name}", "finite values", got)
        low, high = range_estimator(described).fit(batches, spec)
        lows.append(low)
        highs.append(high)
    low, high = torch.cat(lows), torch.cat(highs)
    if spec.bits > 8:
        margin = _MARGIN * (high - low)
        low, high = low - margin, high + margin
    return spec.affine(low, high)


def constant_sites(seen: Mapping[str, list[list[torch.Tensor]]]) -> list[str]:
    """Return a sentence that names the sites of which a segment saw one value only, none where there is no such site."""
    named = []
    for name, segments in seen.items():
        extremes = [(min(float(b.amin()) for b in s), max(float(b.amax()) for b in s)) for s in segments]
        still = [low for low, high in extremes if low == high]
        if still:
            named.append(f"{name} ({still[0]:g})")
    if not named:
        return []
    return [
        f"{len(named)} of {len(seen)} sites saw one value only, which makes a range for nothing else: {some(named, 5)}"
    ]


def thin(values: torch.Tensor, at_most: int) -> torch.Tensor:
    """Return ``[1, n]`` of the values, at most about ``at_most`` by a stride, plus both extremes."""
    flat = values.detach().float().flatten()
    # An odd stride does not fall into step with power-of-two layouts.
    stride = max(1, -(-flat.numel() // at_most)) | 1
    return torch.cat([flat[::stride], flat.amin().view(1), flat.amax().view(1)]).unsqueeze(0)


def observe(
    model: QuantModel, data: Trajectory, plan: dict[str, tuple[SiteOwner, str]], how: Static, run: Run
) -> dict[str, list[list[torch.Tensor]]]:
    """Return thinned values by site: for each segment a list with one ``[1, n]`` per batch."""
    seen: dict[str, list[list[torch.Tensor]]] = {}

    def tap(name: str, owner: SiteOwner, site: str) -> Callable[[torch.Tensor], torch.Tensor]:
        segments = owner.site_segments.get(site) or (0,)
        seen[name] = [[] for _ in segments]

        def look(x: torch.Tensor) -> torch.Tensor:
            axis = getattr(owner, "channel_axis", 1)
            parts = x.split(list(segments), dim=axis) if len(segments) > 1 else (x,)
            for kept, part in zip(seen[name], parts, strict=True):
                kept.append(thin(part, how.at_most))
            return x

        return look

    for name, (owner, site) in plan.items():
        owner.taps[site] = tap(name, owner, site)
    order = torch.randperm(len(data), generator=generator(run.seed, run.step, "order"))[: how.samples]
    try:
        with torch.no_grad():
            for chunk in run.progress.track(order.split(how.batch), "activation ranges", unit="batches"):
                args, kwargs = data.rows(chunk)
                model.module(*args, **kwargs)
    finally:
        for owner, site in plan.values():
            owner.taps.pop(site, None)
    return seen
