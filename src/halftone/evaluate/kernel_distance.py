"""Kernel distance of two clouds of features: for sets too small for the covariance that a Fréchet distance needs."""

from dataclasses import dataclass

import numpy as np

from halftone.foundation.errors import CalibrationError, ConfigError

_DEGREE = 3


@dataclass(frozen=True)
class KernelDistance:
    """An unbiased estimate, which may be a little below zero for equal distributions.

    Attributes:
        features: the network's name; only InceptionV3's is a KID.
        value: mean over the subsets.
        std: over the subsets, of the estimate of one of them.
        subset: how many of each set were taken at a time.
    """

    features: str
    value: float
    std: float
    subset: int


def kernel_distance(
    features: str, generated: np.ndarray, real: np.ndarray, subset: int = 100, draws: int = 100, seed: int = 0
) -> KernelDistance:
    """Return the squared maximum mean discrepancy with the kernel ``(x.y / D + 1)^3`` of Binkowski et al. 2018, arXiv:1801.01401.

    Deviation: features are scaled by the root mean square of the real ones first, so that networks with large and small features
    give numbers of the same size; two models are compared in the same network.

    Args:
        generated, real: features ``[N, D]`` and ``[M, D]``.
        subset: how many of each are taken for one estimate, at most N and M.

    Raises:
        ConfigError: other shapes, or fewer than two of either.
        CalibrationError: a feature is NaN or infinite.
    """
    if (
        generated.ndim != 2
        or real.ndim != 2
        or generated.shape[1] != real.shape[1]
        or min(len(generated), len(real)) < 2
    ):
        got = f"{list(generated.shape)} and {list(real.shape)}"
        raise ConfigError("kernel distance", "features [N, D] and [M, D], at least two of each", got)
    if not (np.isfinite(generated).all() and np.isfinite(real).all()):
        raise CalibrationError("kernel distance", "finite features", "NaN or infinity")
    size = np.sqrt(np.square(real, dtype=np.float64).mean()) or 1.0
    x, y = np.asarray(generated, np.float64) / size, np.asarray(real, np.float64) / size
    count, random = min(subset, len(x), len(y)), np.random.default_rng(seed)
    found = [
        _discrepancy(x[random.choice(len(x), count, replace=False)], y[random.choice(len(y), count, replace=False)])
        for _ in range(draws)
    ]
    return KernelDistance(features, float(np.mean(found)), float(np.std(found, ddof=1)) if draws > 1 else 0.0, count)


def _discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    """Return the unbiased estimate from equally many of each (their equation 3)."""
    n, width = x.shape
    own = 0.0
    for each in (x, y):
        products = (each @ each.T / width + 1) ** _DEGREE
        own += (products.sum() - np.trace(products)) / (n * (n - 1))
    return float(own - 2 * ((x @ y.T / width + 1) ** _DEGREE).mean())
