"""Laws of the Fréchet distance and of its statistics."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg

from halftone.evaluate.frechet import Statistics, accumulate, distance, merge, statistics
from halftone.foundation.errors import CalibrationError, ConfigError


def cloud(seed: int, count: int = 60, width: int = 6) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(count, width)) @ random.normal(size=(width, width)) + random.normal(size=width)


@given(st.integers(0, 10**6), st.integers(2, 40))
def test_a_set_is_at_no_distance_from_itself(seed: int, count: int) -> None:
    found = statistics(cloud(seed, count))  # fewer than 7 samples: a singular covariance
    assert distance(found, found) <= 1e-10 * (1 + found.total_variance)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=5), st.floats(0, 10), st.floats(-3, 3))
def test_gaussians_with_a_common_basis_have_the_closed_form(variances: list[float], other: float, shift: float) -> None:
    size = len(variances)
    basis, _ = np.linalg.qr(np.random.default_rng(size).normal(size=(size, size)))
    a = Statistics(np.zeros(size), basis @ np.diag(variances) @ basis.T, 10)
    b = Statistics(np.full(size, shift), np.eye(size) * other, 10)
    expected = size * shift**2 + ((np.sqrt(variances) - np.sqrt(other)) ** 2).sum()
    assert distance(a, b) == pytest.approx(expected, abs=1e-6)


def test_general_gaussians_agree_with_the_root_of_the_product() -> None:
    a, b = statistics(cloud(1)), statistics(cloud(2))
    root = linalg.sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances_are_fine() -> None:
    flat, line = np.zeros((3, 3)), np.diag([4.0, 0.0, 0.0])
    a, b = Statistics(np.zeros(3), flat, 5), Statistics(np.ones(3), line, 5)
    assert distance(a, b) == pytest.approx(3 + 4)
    assert distance(b, b) == pytest.approx(0, abs=1e-12)


@given(st.integers(0, 10**6), st.lists(st.integers(0, 30), max_size=4), st.randoms(use_true_random=False))
def test_statistics_depend_on_neither_order_nor_chunks(seed: int, cuts: list[int], random: object) -> None:
    values = cloud(seed, 30) + 100.0  # a large mean, where a sum of squares would lose digits
    order = list(range(len(values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    whole, parts = statistics(values), accumulate(np.split(values[order], sorted(cuts)))
    assert parts.count == whole.count
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(parts.covariance, whole.covariance, rtol=1e-9, atol=1e-9)


def test_statistics_are_numpys() -> None:
    values = cloud(3)
    found = statistics(torch.from_numpy(values))
    np.testing.assert_allclose(found.covariance, np.cov(values.T), rtol=1e-10)
    assert found.mean.dtype == found.covariance.dtype == np.float64
    assert statistics(values[:1]).covariance.max() == 0


def test_wrong_input_is_named() -> None:
    with pytest.raises(ConfigError):
        statistics(np.zeros(3))
    with pytest.raises(CalibrationError):
        statistics(np.full((3, 2), np.nan))
    with pytest.raises(CalibrationError):
        accumulate([])
    with pytest.raises(ConfigError):
        merge(statistics(cloud(0, 5, 2)), statistics(cloud(0, 5, 3)))
    with pytest.raises(ConfigError):
        distance(statistics(cloud(0, 5, 2)), statistics(cloud(0, 5, 3)))
