"""Paired distances against known cases."""

import math

import numpy as np
import pytest
import torch

from halftone.evaluate.paired import Interval, decibels, interval, mean_psnr, mse, psnr, ssim
from halftone.foundation.errors import ConfigError


def noise(seed: int, shape: tuple[int, ...] = (3, 2, 14, 13)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def test_mse_and_psnr_of_known_errors() -> None:
    a = np.zeros((2, 1, 4, 4))
    b = np.stack([np.full((1, 4, 4), 0.1), np.full((1, 4, 4), 0.01)])
    np.testing.assert_allclose(mse(a, b), [1e-2, 1e-4])
    assert psnr(a, b) == pytest.approx(decibels((1e-2 + 1e-4) / 2))
    assert mean_psnr(a, b) == pytest.approx(30.0)
    assert psnr(a, a) == math.inf
    assert math.isnan(decibels(math.nan))


def test_numpy_and_torch_agree() -> None:
    a, b = noise(0), noise(1)
    np.testing.assert_array_equal(mse(a, b), mse(torch.from_numpy(a), torch.from_numpy(b)))


def test_ssim_of_equal_and_of_flat_images() -> None:
    a = noise(0).astype(np.float32)
    np.testing.assert_allclose(ssim(a, a), 1.0, rtol=1e-12)
    low, high = np.full((1, 1, 12, 12), 0.25), np.full((1, 1, 12, 12), 0.75)
    c1 = 0.01**2
    expected = (2 * 0.25 * 0.75 + c1) / (0.25**2 + 0.75**2 + c1)
    np.testing.assert_allclose(ssim(low, high), expected, rtol=1e-9)


def test_ssim_is_the_definition_written_out() -> None:
    a, b = noise(0), noise(1) * 0.5 + noise(0) * 0.5
    axis = np.arange(-5, 6)
    window = np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    expected = []
    for x, y in zip(a, b, strict=True):
        places = []
        for channel, i, j in np.ndindex(x.shape[0], x.shape[1] - 10, x.shape[2] - 10):
            p, q = x[channel, i : i + 11, j : j + 11], y[channel, i : i + 11, j : j + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            both = (window * (p - mp) * (q - mq)).sum()
            top = (2 * mp * mq + 1e-4) * (2 * both + 9e-4)
            places.append(top / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
        expected.append(np.mean(places))
    np.testing.assert_allclose(ssim(a, b), expected, rtol=1e-9)


def test_the_interval_holds_the_mean_and_narrows() -> None:
    values = np.random.default_rng(0).exponential(size=400)
    few, many = interval(values[:25], seed=1), interval(values, seed=1)
    assert few.low < few.value < few.high
    assert many.value == pytest.approx(values.mean())
    # 95 % of a mean: about +- 1.96 standard errors
    assert many.high - many.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    assert many.high - many.low < few.high - few.low
    assert interval(values, seed=1) == many
    assert interval(values, seed=2) != many


def test_a_decreasing_map_swaps_the_bounds() -> None:
    found = Interval(1e-2, 1e-3, 1e-1).map(decibels)
    assert (found.value, found.low, found.high) == pytest.approx((20.0, 10.0, 30.0))


def test_wrong_input_is_named() -> None:
    with pytest.raises(ConfigError):
        mse(noise(0), noise(0)[:2])
    with pytest.raises(ConfigError, match="255"):
        mse(np.zeros((1, 2), np.uint8), np.zeros((1, 2), np.uint8))
    with pytest.raises(ConfigError, match="11x11"):
        ssim(noise(0, (1, 1, 8, 20)), noise(0, (1, 1, 8, 20)))
    with pytest.raises(ConfigError):
        interval(np.zeros(0), seed=0)
