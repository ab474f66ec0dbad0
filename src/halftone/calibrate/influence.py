"""How much an error of each denoiser call shows in the final image: what an error summed over calls should be weighted by.

A sampler's first calls decide the picture, its last ones only polish it, while the quantized network is usually worst in the last.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.utils import _pytree as pytree

from halftone.calibrate.conditions import in_turn
from halftone.calibrate.sampling import batches, last_step, quiet, run_steps
from halftone.foundation.errors import CalibrationError
from halftone.foundation.progress import Progress
from halftone.foundation.seeds import generator
from halftone.models.denoiser import denoiser
from halftone.models.standing_in import copied, standing_in

# Of the standard deviation of what a call puts out. Small enough for the image to follow in proportion; about what 4 bits do.
_DISTURBANCE = 0.02
PROBES = 20  # calls that are disturbed at most


class _Disturbed:
    """The forward of a denoiser whose answer to one call is disturbed; the calls before are answered from what it said before."""

    def __init__(self, network: nn.Module, noise: torch.Generator) -> None:
        self.forward, self.noise = network.forward, noise
        self.said: list[Any] = []
        self.call = self.target = -1
        self.size = torch.empty(0)  # mean square of the last disturbance

    def begin(self, target: int) -> None:
        """Start a sampling whose call ``target`` is disturbed; -1 for none."""
        self.call, self.target = -1, target

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.call += 1
        if self.target < 0:
            self.said.append(self.forward(*args, **kwargs))
            return copied(self.said[-1])
        if self.call > self.target:
            return self.forward(*args, **kwargs)
        said = copied(self.said[self.call])
        return said if self.call < self.target else pytree.tree_map_only(torch.Tensor, self._disturb, said)

    def _disturb(self, out: torch.Tensor) -> torch.Tensor:
        added = torch.randn(out.shape, generator=self.noise).to(out) * (_DISTURBANCE * out.float().std())
        self.size = added.float().square().mean().cpu()
        return out + added


def influence(
    pipe: DiffusionPipeline,
    images: int,
    steps: int,
    seed: int,
    probes: int = PROBES,
    progress: Progress | None = None,
    each: Mapping[str, Sequence[Any]] | None = None,
    **call: Any,
) -> torch.Tensor:
    """Return float32 ``[calls]``: mean square error of the final image per mean square error of a call, relative to their mean.

    The float pipeline samples ``images`` images, and once more for each probed call, with noise added to what the denoiser says in
    that call alone. The median over the images is taken: some images sit on the edge of becoming another picture.

    Args:
        probes: calls that are disturbed, evenly spread; the others are interpolated.
        each, call: as for :func:`halftone.calibrate.record.record`.

    Raises:
        CalibrationError: images that an error of no call changes.
    """
    network = denoiser(pipe)
    arguments = next(batches(pipe, images, seed, images, in_turn(each, images, seed), call, "influence"))
    disturbed = _Disturbed(network, generator(seed, "calibration", "influence"))
    states = [g.get_state() for g in arguments["generator"]]

    def final(target: int) -> torch.Tensor:
        for stream, state in zip(arguments["generator"], states, strict=True):
            stream.set_state(state)
        disturbed.begin(target)
        with last_step(pipe.scheduler) as last:
            run_steps(pipe, steps, arguments)
        return last[0].detach().float().cpu()

    with quiet(pipe), torch.no_grad(), standing_in(network, disturbed):
        wanted = final(-1)
        calls = len(disturbed.said)
        probed = np.unique(np.linspace(0, calls - 1, min(probes, calls)).round().astype(int))
        found = []
        for i in (progress or Progress(enabled=False)).track(probed.tolist(), "influence of the calls", unit="calls"):
            error = (final(i) - wanted).square().flatten(1).mean(1).median()
            found.append(float(error / disturbed.size))
    if not all(np.isfinite(found)) or max(found) <= 0:
        raise CalibrationError("influence of the calls", "images that an error of a call changes", f"{found}")
    # Between probes the logarithm is interpolated: neighbours differ by factors.
    smallest = 1e-9 * max(found)
    logs = np.interp(np.arange(calls), probed, np.log(np.maximum(found, smallest)))
    weights = torch.from_numpy(np.exp(logs)).float()
    return weights / weights.mean()
