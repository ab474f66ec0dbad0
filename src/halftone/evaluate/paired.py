"""Distances between a quantized model's images and the float model's from the same noise, image by image.

Images are ``[N, C, H, W]`` in [0, 1], NumPy or torch; everything is computed in float64.

Headline: the PSNR of the *pooled* error, ``10 log10(1 / mean MSE)``. The mean of the images' own PSNRs is higher
(Jensen), and one identical pair makes it infinite; it is given beside the headline, never instead of it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from halftone.foundation.errors import ConfigError

Images = np.ndarray | torch.Tensor
_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03  # Wang et al. 2004, "Image quality assessment"


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its bootstrap confidence interval."""

    value: float
    low: float
    high: float
    confidence: float = 0.95

    def map(self, function: Callable[[float], float]) -> "Interval":
        """Return the interval of a monotone function of the estimate."""
        low, high = sorted((function(self.low), function(self.high)))
        return Interval(function(self.value), low, high, self.confidence)


def _pair(a: Images, b: Images) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.as_tensor(a), torch.as_tensor(b)
    if x.shape != y.shape or x.ndim < 2 or len(x) == 0:
        raise ConfigError("paired distance", "two equal batches [N, ...]", f"{list(x.shape)} and {list(y.shape)}")
    if not (x.is_floating_point() and y.is_floating_point()):
        raise ConfigError("paired distance", "floating point values", f"{x.dtype} and {y.dtype}", "Divide by 255.")
    return x.detach().cpu(), y.detach().cpu()


def mse(a: Images, b: Images) -> np.ndarray:
    """Return the mean squared difference of each pair, ``[N]`` float64. Any batches ``[N, ...]``, latents too."""
    x, y = _pair(a, b)
    errors = [
        (p.double() - q.double()).square().flatten(1).mean(1) for p, q in zip(x.split(64), y.split(64), strict=True)
    ]
    return torch.cat(errors).numpy()


def decibels(error: float) -> float:
    """Return the PSNR of a mean squared error of images in [0, 1]: infinite for 0."""
    return math.inf if error == 0 else -10.0 * math.log10(error)


def psnr(a: Images, b: Images) -> float:
    """Return the headline PSNR in dB, of the error pooled over all pairs."""
    return decibels(float(mse(a, b).mean()))


def mean_psnr(a: Images, b: Images) -> float:
    """Return the mean of the pairs' own PSNRs in dB."""
    return float(np.mean([decibels(float(error)) for error in mse(a, b)]))


def _ssim(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """SSIM of each image of a batch, the mean over channels and over the places where the whole window fits."""
    axis = torch.arange(_WINDOW, dtype=x.dtype) - _WINDOW // 2
    window = torch.exp(-axis.square() / (2 * _SIGMA**2))
    window = (window / window.sum()).view(1, 1, 1, -1)

    def blur(z: torch.Tensor) -> torch.Tensor:
        planes = z.flatten(0, 1).unsqueeze(1)
        smooth = functional.conv2d(functional.conv2d(planes, window), window.transpose(2, 3))
        return smooth.squeeze(1).unflatten(0, z.shape[:2])

    mean_x, mean_y = blur(x), blur(y)
    var_x = blur(x * x) - mean_x.square()
    var_y = blur(y * y) - mean_y.square()
    both = blur(x * y) - mean_x * mean_y
    c1, c2 = _K1**2, _K2**2
    like = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    like = like / ((mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2))
    return like.flatten(1).double().mean(1)


def ssim(a: Images, b: Images) -> np.ndarray:
    """Return each pair's structural similarity, ``[N]`` float64: 11x11 Gaussian window, sigma 1.5, no padding.

    Raises:
        ConfigError: images that are not ``[N, C, H, W]`` of at least 11x11.
    """
    x, y = _pair(a, b)
    if x.ndim != 4 or min(x.shape[2:]) < _WINDOW:
        raise ConfigError("SSIM", f"images [N, C, H, W] of at least {_WINDOW}x{_WINDOW}", str(list(x.shape)))
    # float64: the variances are differences of nearly equal numbers, and flat images would drown in rounding.
    parts = [_ssim(p.double(), q.double()) for p, q in zip(x.split(64), y.split(64), strict=True)]
    return torch.cat(parts).numpy()


def interval(values: np.ndarray, seed: int, draws: int = 2000, confidence: float = 0.95) -> Interval:
    """Return the mean of ``values`` ``[N]`` with its percentile bootstrap interval (Efron 1979), images redrawn.

    The values are distances of *pairs*, so redrawing images keeps pairs together. To compare two rows on the same
    samples, give the differences of their values, not two intervals. Equal seeds draw equal images.
    """
    sample = np.asarray(values, dtype=np.float64).reshape(-1)
    if sample.size == 0 or not 0 < confidence < 1:
        raise ConfigError("interval", "values, and a confidence between 0 and 1", f"{sample.size}, {confidence}")
    random = np.random.default_rng(seed)
    # One draw at a time bounds the memory to one batch of indices.
    means = [sample[random.integers(0, sample.size, sample.size)].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(sample.mean()), float(low), float(high), confidence)
