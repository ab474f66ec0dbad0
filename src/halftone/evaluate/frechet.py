"""Fréchet distance of two clouds of features, each taken as a Gaussian (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

The number is named after the features it is measured in, ``FD(fashion-classifier)`` say. Only InceptionV3's is an FID.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch

from halftone.foundation.errors import CalibrationError, ConfigError

Array = np.ndarray


@dataclass(frozen=True)
class Statistics:
    """Mean ``[D]``, covariance ``[D, D]`` (divided by ``count - 1``), both float64, of ``count`` feature vectors.

    Raises:
        ConfigError: shapes that do not fit each other.
        CalibrationError: a value that is not finite, or no sample at all.
    """

    mean: Array
    covariance: Array
    count: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", np.asarray(self.mean, dtype=np.float64))
        object.__setattr__(self, "covariance", np.asarray(self.covariance, dtype=np.float64))
        if self.mean.ndim != 1 or self.covariance.shape != (self.mean.size, self.mean.size):
            got = f"{self.mean.shape} and {self.covariance.shape}"
            raise ConfigError("feature statistics", "mean [D] and covariance [D, D]", got)
        if self.count < 1:
            raise CalibrationError("feature statistics", "at least one sample", str(self.count))
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise CalibrationError("feature statistics", "finite features", "NaN or infinity")

    @property
    def total_variance(self) -> float:
        """The trace of the covariance."""
        return float(np.trace(self.covariance))


def statistics(features: Array | torch.Tensor) -> Statistics:
    """Return the statistics of ``features`` ``[N, D]``, N >= 1, summed in float64; one sample has covariance 0."""
    if isinstance(features, torch.Tensor):
        features = features.detach().cpu().double().numpy()
    values = np.asarray(features, dtype=np.float64)
    if values.ndim != 2 or len(values) == 0:
        raise ConfigError("features", "[N, D] with N >= 1", str(list(values.shape)))
    mean = values.mean(axis=0)
    centred = values - mean
    return Statistics(mean, centred.T @ centred / max(len(values) - 1, 1), len(values))


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Return the statistics of both sets of samples together (Chan, Golub & LeVeque 1979)."""
    if a.mean.shape != b.mean.shape:
        raise ConfigError("feature statistics", f"{a.mean.size} features", str(b.mean.size))
    count = a.count + b.count
    shift = b.mean - a.mean
    scatter = a.covariance * (a.count - 1) + b.covariance * (b.count - 1)
    scatter = scatter + np.outer(shift, shift) * (a.count * b.count / count)
    return Statistics(a.mean + shift * (b.count / count), scatter / (count - 1), count)


def accumulate(chunks: Iterable[Array | torch.Tensor]) -> Statistics:
    """Return the statistics of all ``chunks`` ``[n, D]`` together, holding one at a time."""
    parts = (statistics(chunk) for chunk in chunks if len(chunk))
    first = next(parts, None)
    if first is None:
        raise CalibrationError("feature statistics", "at least one sample", "none")
    return reduce(merge, parts, first)


def _root(covariance: Array) -> Array:
    """The symmetric square root; eigenvalues that rounding cannot tell from zero, negative ones too, are zero."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    # A zero that comes back as 1e-16 would have the root 1e-8.
    noise = np.abs(values).max(initial=0.0) * values.size * np.finfo(np.float64).eps
    return (vectors * np.sqrt(np.where(values > noise, values, 0.0))) @ vectors.T


def distance(a: Statistics, b: Statistics) -> float:
    """Return ``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))``, never negative.

    The trace of the root is the sum of the singular values of ``C_a^(1/2) C_b^(1/2)``: real for every pair, exact for
    singular covariances, and more precise than a root of the product, whose zero eigenvalues come back as the root of
    the rounding error.
    """
    if a.mean.shape != b.mean.shape:
        raise ConfigError("Fréchet distance", f"{a.mean.size} features on both sides", str(b.mean.size))
    overlap = np.linalg.svd(_root(a.covariance) @ _root(b.covariance), compute_uv=False).sum()
    apart = a.mean - b.mean
    return max(float(apart @ apart + a.total_variance + b.total_variance - 2.0 * overlap), 0.0)
