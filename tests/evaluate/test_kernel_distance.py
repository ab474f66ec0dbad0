"""The kernel distance of small sets: zero for equal distributions, growing with the distance, independent of scale."""

import numpy as np
import pytest

from halftone.evaluate.kernel_distance import kernel_distance
from halftone.foundation.errors import CalibrationError, ConfigError


def cloud(count: int, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1.0, (count, 8))


def test_equal_distributions_have_none() -> None:
    found = kernel_distance("x", cloud(400), cloud(300, seed=1), subset=100)
    assert abs(found.value) < found.std and found.subset == 100


def test_it_grows_with_the_distance_and_knows_no_scale() -> None:
    real = cloud(300, seed=1)
    near, far = (kernel_distance("x", cloud(300, shift), real).value for shift in (0.3, 1.0))
    assert 0.05 < near < far
    assert kernel_distance("x", 1000 * cloud(300, 1.0), 1000 * real).value == pytest.approx(far)


def test_the_estimate_of_a_whole_set_is_the_formula() -> None:
    x, y = cloud(5), cloud(5, 0.5, seed=2)
    y /= np.sqrt(np.square(y).mean())  # so that nothing is scaled
    kernel = lambda a, b: (a @ b / 8 + 1) ** 3  # noqa: E731
    pairs = [(i, j) for i in range(5) for j in range(5)]
    wanted = sum(kernel(z[i], z[j]) for z in (x, y) for i, j in pairs if i != j) / 20 - 2 * np.mean(
        [kernel(x[i], y[j]) for i, j in pairs]
    )
    assert kernel_distance("x", x, y, subset=5, draws=3).value == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("a", "b"),
    [(cloud(1), cloud(5)), (cloud(5), cloud(5)[:, :3]), (cloud(5)[0], cloud(5))],
    ids=["one", "width", "axes"],
)
def test_other_shapes_are_refused(a: np.ndarray, b: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="at least two of each"):
        kernel_distance("x", a, b)


def test_broken_features_are_refused() -> None:
    broken = cloud(5)
    broken[0, 0] = np.nan
    with pytest.raises(CalibrationError, match="finite"):
        kernel_distance("x", broken, cloud(5))
