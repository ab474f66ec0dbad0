"""One model judged: against real images (Fréchet distance and floor) and against its float original (paired distances).

A damaged model can score a better distribution distance than the original, so none of the first kind stands alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline

from halftone.evaluate import features, paired
from halftone.evaluate.features import FeatureNetwork, Floor
from halftone.evaluate.frechet import distance
from halftone.evaluate.paired import Interval
from halftone.evaluate.public_metrics import PublicMetrics
from halftone.evaluate.sample import Calls, Protocol, Samples, protocol, sample, trajectories
from halftone.foundation.build import plain
from halftone.foundation.errors import ConfigError
from halftone.foundation.progress import Progress

_SSIM_SIDE = 11  # its window


@dataclass(frozen=True)
class Distribution:
    """A Fréchet distance to the real training images.

    Attributes:
        name: ``FD(<feature network>)``; never FID, which is InceptionV3's.
        value: the distance of the samples.
        floor: that of about as many real images, the least a model can be expected to reach.
        test_distance: that of the whole test split.
        network_sha256: the feature network's weights.
    """

    name: str
    value: float
    floor: Floor
    test_distance: float
    network_sha256: str


@dataclass(frozen=True)
class Paired:
    """Distances to the float model's samples from the same noise, with 95 % bootstrap intervals over the samples.

    Attributes:
        psnr: dB of the error pooled over all images, the headline.
        mean_psnr: mean of the images' own PSNRs in dB.
        ssim: mean structural similarity; None for images too small for its window, and for videos.
        mse: mean squared error of images in [0, 1].
        latent_mse: that of what the scheduler returned last, in the model's own range and not clamped.
    """

    psnr: Interval
    mean_psnr: float
    ssim: Interval | None
    mse: Interval
    latent_mse: Interval


@dataclass(frozen=True)
class Trail:
    """Errors at each denoiser call, both models sampling on their own from equal noise.

    Attributes:
        samples: how many were averaged.
        timesteps: what the denoiser was told at each call.
        eps_mse: of the denoiser's outputs.
        x_mse: of the x_t it was given: what has piled up so far.
    """

    samples: int
    timesteps: tuple[float, ...]
    eps_mse: tuple[float, ...]
    x_mse: tuple[float, ...]


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and how. ``None`` stands for what was not asked for or cannot be had.

    ``float_distribution`` is that of the model compared with: a distance says little without the original's beside it. ``public``
    is what weights give that do not ship.
    """

    protocol: Protocol
    seconds: float
    distribution: Distribution | None
    paired: Paired | None
    trail: Trail | None
    float_distribution: Distribution | None = None
    public: PublicMetrics | None = None

    def plain(self) -> dict[str, Any]:
        """Return the record as JSON-safe data."""
        return plain(self)


def distribution(samples: Samples, entry: FeatureNetwork) -> Distribution:
    """Return the Fréchet distance of ``samples`` to the reference of a feature network."""
    real = features.reference(entry.name)
    found = features.feature_statistics(samples.images, entry.name)
    floor = real.floor(len(samples.images))
    value = distance(found, real.train)
    return Distribution(entry.distance_name, value, floor, real.test_distance, real.network_sha256)


def pair(samples: Samples, against: Samples, seed: int = 0) -> Paired:
    """Return the paired distances of two sets of samples; ``seed`` is that of the bootstrap.

    Raises:
        ConfigError: the sets are not pairs: another sampler, steps, seed or number.
    """
    if not samples.protocol.matches(against.protocol):
        fix = "Draw both with the same pipeline class, scheduler, steps, seed and number."
        raise ConfigError("paired distances", str(against.protocol), str(samples.protocol), fix)
    error = paired.interval(paired.mse(samples.images, against.images), seed)
    similar = None
    if samples.images.ndim == 4 and min(samples.images.shape[2:]) >= _SSIM_SIDE:
        similar = paired.interval(paired.ssim(samples.images, against.images), seed)
    return Paired(
        psnr=error.map(paired.decibels),
        mean_psnr=paired.mean_psnr(samples.images, against.images),
        ssim=similar,
        mse=error,
        latent_mse=paired.interval(paired.mse(samples.latents, against.latents), seed),
    )


def trail(calls: Calls, against: Calls) -> Trail:
    """Return the errors between two recorded samplings, call by call."""
    if calls.inputs.shape != against.inputs.shape or not np.array_equal(calls.timesteps, against.timesteps):
        raise ConfigError("trail", f"calls {against.inputs.shape}", f"{calls.inputs.shape}", "Use one scheduler.")

    def errors(a: np.ndarray, b: np.ndarray) -> tuple[float, ...]:
        return tuple(float(paired.mse(p, q).mean()) for p, q in zip(a, b, strict=True))

    return Trail(
        samples=calls.inputs.shape[1],
        timesteps=tuple(calls.timesteps.tolist()),
        eps_mse=errors(calls.outputs, against.outputs),
        x_mse=errors(calls.inputs, against.inputs),
    )


def _network(name: str | None, samples: Samples) -> FeatureNetwork | None:
    if name == "none":
        return None
    return features.network_for(samples.images.shape[1:]) if name is None else features.network(name)


def judge(
    samples: Samples, against: Samples | None = None, network: str | None = None, trail: Trail | None = None
) -> Evaluation:
    """Return the record of samples already drawn; see ``evaluate``."""
    entry = _network(network, samples)
    return Evaluation(
        protocol=samples.protocol,
        seconds=samples.seconds,
        distribution=distribution(samples, entry) if entry else None,
        paired=pair(samples, against) if against is not None else None,
        trail=trail,
        float_distribution=distribution(against, entry) if entry and against is not None else None,
    )


def evaluate(
    pipe: DiffusionPipeline,
    against: DiffusionPipeline | Samples | None = None,
    samples: int = 2000,
    steps: int = 50,
    seed: int = 0,
    batch: int = 64,
    network: str | None = None,
    trail_samples: int = 0,
    progress: Progress | None = None,
    each: Mapping[str, Sequence[Any]] | None = None,
    **call: Any,
) -> Evaluation:
    """Sample ``pipe`` and measure it.

    Args:
        against: the float pipeline, or its samples where they are there already. None: no paired distances.
        samples, steps, seed, batch: number of samples, denoising steps, seed of the noise, samples at a time.
        network: the feature network of the Fréchet distance; None takes the only one for images of this shape, if
            there is one, and ``"none"`` leaves the distance out. The result names it either way.
        trail_samples: samples for the errors along the trajectory, 0 for none. ``against`` must be a pipeline.
        progress: shows the counts.
        each, call: arguments of the pipeline, see ``sample``.

    Raises:
        ConfigError: samples that are not pairs, an unknown network, or a trail without a pipeline to compare with.
    """
    if trail_samples and not isinstance(against, DiffusionPipeline):
        raise ConfigError("trail_samples", "a float pipeline in `against`", type(against).__name__)
    if isinstance(against, Samples):
        # Before the work, not after it.
        wanted = protocol(pipe, samples, steps, seed, batch, each, **call)
        if not wanted.matches(against.protocol):
            raise ConfigError("against", f"samples of {wanted}", str(against.protocol))
    drawn = sample(pipe, samples, steps, seed, batch, progress, each, **call)
    other = against
    if isinstance(against, DiffusionPipeline):
        other = sample(against, samples, steps, seed, batch, progress, each, **call)
    found = None
    if trail_samples:
        first = {name: values[:trail_samples] for name, values in (each or {}).items()}
        found = trail(
            trajectories(pipe, trail_samples, steps, seed, batch, progress, first, **call),
            trajectories(against, trail_samples, steps, seed, batch, progress, first, **call),
        )
    return judge(drawn, other, network, found)
