"""Activation ranges along the sampling: what each linear and convolution of the float model is fed, call by call.

The picture behind calibration over timesteps (the ranges move) and behind split shortcuts (the two tensors that a shortcut reads
side by side differ), so it belongs to a report of either.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from halftone.calibrate.sampling import Protocol, batches, last_step, protocol, quiet, run_steps
from halftone.foundation.build import plain
from halftone.foundation.errors import CalibrationError, ConfigError
from halftone.foundation.progress import Progress
from halftone.models.concatenation import concatenated_inputs
from halftone.models.denoiser import denoiser
from halftone.models.roles import QUANTIZABLE
from halftone.nn import QuantizedLayer
from halftone.quant.bimodality import bimodality

QUANTILES = (0.001, 0.999)
# Values that a batch's quantiles are taken from: 16 lie outside each of them.
_AT_MOST = 16384


@dataclass(frozen=True)
class Band:
    """The values of one tensor, by denoiser call.

    Attributes:
        minimum, maximum: extremes over all samples.
        low, high: the quantiles named in ``Ranges.quantiles``, the mean over batches of those of a regular subsample.
    """

    minimum: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    maximum: tuple[float, ...]


@dataclass(frozen=True)
class Concatenation:
    """A layer fed directly by a concatenation.

    Attributes:
        channels: of each part, in order.
        parts: their values.
        bimodality: what separate scales would gain, in dB, from the extremes over all calls
            (:func:`halftone.quant.bimodality.bimodality`).
    """

    channels: tuple[int, ...]
    parts: tuple[Band, ...]
    bimodality: float


@dataclass(frozen=True)
class Ranges:
    """What went into every layer, by path.

    Attributes:
        timesteps: what the denoiser was told at each call; the bands are in this order.
        concatenations: further facts of those layers that are fed by a concatenation.
    """

    protocol: Protocol
    timesteps: tuple[float, ...]
    quantiles: tuple[float, float]
    layers: dict[str, Band]
    concatenations: dict[str, Concatenation]

    def plain(self) -> dict[str, Any]:
        """Return the record as JSON-safe data."""
        return plain(self)


class _Found(Exception):
    """Raised by a hook that has what it wanted."""


class _Meter:
    """Rows of minimum, low, high, maximum by call; several looks in one call are merged."""

    def __init__(self) -> None:
        self.rows: dict[int, torch.Tensor] = {}

    def look(self, path: str, call: int, x: torch.Tensor) -> None:
        flat = x.detach().float().flatten()
        picked = flat[:: max(1, flat.numel() // _AT_MOST)]
        low, high = torch.quantile(picked, torch.tensor(QUANTILES, device=flat.device)).tolist()
        row = torch.tensor([float(flat.min()), low, high, float(flat.max())], dtype=torch.float64)
        if not torch.isfinite(row).all():
            raise CalibrationError(f"input of {path}", "finite values", "NaN or infinity", "The float model is broken.")
        before = self.rows.get(call)
        self.rows[call] = (
            row if before is None else torch.cat([before[:2].minimum(row[:2]), before[2:].maximum(row[2:])])
        )


class _Watch:
    """Hooks on a denoiser and its layers for the time of one pipeline call.

    The call index is counted here, from 0, as nothing else knows it.
    """

    def __init__(self, network: nn.Module, parts: Mapping[str, tuple[int, ...]]) -> None:
        self.parts = parts
        self.times: list[float] = []
        self.meters: dict[tuple[str, int], _Meter] = {}
        self.forward = inspect.signature(network.forward)
        self.handles = [network.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for path, module in network.named_modules():
            if isinstance(module, QUANTIZABLE):
                self.handles.append(module.register_forward_pre_hook(self._looker(path), with_kwargs=True))

    def __enter__(self) -> "_Watch":
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = dict(zip(self.forward.parameters, args, strict=False)) | kwargs
        self.times.append(torch.as_tensor(given["timestep"], dtype=torch.float64).flatten()[0].item())

    def _looker(self, path: str) -> Any:
        def look(module: nn.Module, args: tuple, kwargs: dict) -> None:
            x = args[0] if args else kwargs["input"]
            if not self.times or x.numel() == 0:
                return
            self._meter(path, 0, x)
            if path in self.parts:
                axis = 1 if x.ndim == 4 else -1
                for number, part in enumerate(x.split(list(self.parts[path]), dim=axis), start=1):
                    self._meter(path, number, part)

        return look

    def _meter(self, path: str, part: int, x: torch.Tensor) -> None:
        self.meters.setdefault((path, part), _Meter()).look(path, len(self.times) - 1, x)


class _Bands:
    """Joins what the pipeline calls gave: extremes of the extremes, means of the quantiles (weighted by samples).

    A call in which a layer had no part is NaN.
    """

    def __init__(self) -> None:
        self.sums: dict[tuple[str, int], torch.Tensor] = {}
        self.samples = 0

    def add(self, watch: _Watch, samples: int) -> None:
        self.samples += samples
        for key, meter in watch.meters.items():
            rows = torch.full((len(watch.times), 4), torch.nan, dtype=torch.float64)
            for call, row in meter.rows.items():
                rows[call] = row
            rows[:, 1:3] *= samples
            before = self.sums.get(key)
            if before is not None:
                inner = before[:, 1:3] + rows[:, 1:3]
                rows = torch.stack([before[:, 0].fmin(rows[:, 0]), *inner.T, before[:, 3].fmax(rows[:, 3])], dim=1)
            self.sums[key] = rows

    def band(self, path: str, part: int = 0) -> Band:
        rows = self.sums[path, part].clone()
        rows[:, 1:3] /= self.samples
        return Band(*(tuple(float(f"{v:.6g}") for v in column.tolist()) for column in rows.T))

    def extremes(self, path: str, parts: int) -> torch.Tensor:
        """Return ``[parts, 2]``, the smallest and largest value of each part over all calls."""
        rows = [self.sums[path, number] for number in range(1, parts + 1)]
        return torch.stack([torch.stack([row[:, 0].nan_to_num().min(), row[:, 3].nan_to_num().max()]) for row in rows])


def _concatenated(pipe: DiffusionPipeline, arguments: Mapping[str, Any], steps: int) -> dict[str, tuple[int, ...]]:
    """Return the layers fed by a concatenation, from watching the first denoiser call of a sampling."""
    seen: list[tuple[tuple, dict]] = []

    def stop(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append((args, kwargs))
        raise _Found

    handle = denoiser(pipe).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        run_steps(pipe, steps, arguments)
    except _Found:
        pass
    finally:
        handle.remove()
    return concatenated_inputs(denoiser(pipe), *seen[0])


def ranges_over_time(
    pipe: DiffusionPipeline,
    count: int,
    steps: int,
    seed: int,
    batch: int,
    each: Mapping[str, Sequence[Any]] | None = None,
    progress: Progress | None = None,
    **call: Any,
) -> Ranges:
    """Sample with the float pipeline and return the range of every linear's and convolution's input at each call.

    Memory does not grow with ``count``: a band is four numbers a call.

    Args:
        count, steps, seed, batch: samples, ``num_inference_steps``, seed of the noise, samples at a time.
        each, call: arguments of the pipeline, see :func:`halftone.evaluate.sample.sample`.
        progress: shows the count.

    Raises:
        ConfigError: the pipeline's denoiser is quantized: its layers hold codes.
        CalibrationError: NaN or infinite activations.
    """
    network = denoiser(pipe)
    if any(isinstance(module, QuantizedLayer) for module in network.modules()):
        raise ConfigError("ranges", "a float denoiser", "one that Halftone has quantized", "Load the original model.")
    facts = protocol(pipe, count, steps, seed, batch, each, **call)
    bands = _Bands()
    times: tuple[float, ...] = ()
    task = (progress or Progress(enabled=False)).task("ranges", count, "images")
    with task, quiet(pipe), last_step(pipe.scheduler), torch.no_grad():
        parts = _concatenated(pipe, next(batches(pipe, count, seed, batch, each or {}, call)), steps)
        for arguments in batches(pipe, count, seed, batch, each or {}, call):
            size = len(arguments["generator"])
            with _Watch(network, parts) as watch:
                run_steps(pipe, steps, arguments)
            times = tuple(watch.times)
            bands.add(watch, size)
            task.advance(size)
    layers = {path: bands.band(path) for path, part in bands.sums if part == 0}
    weights = {path: network.get_parameter(f"{path}.weight").detach().cpu() for path in parts if path in layers}
    concatenations = {
        path: Concatenation(
            channels=parts[path],
            parts=tuple(bands.band(path, number + 1) for number in range(len(parts[path]))),
            bimodality=round(bimodality(bands.extremes(path, len(parts[path])), weight, parts[path]), 4),
        )
        for path, weight in weights.items()
    }
    return Ranges(facts, times, QUANTILES, layers, concatenations)
