"""Sampling strategies, listed from their folder: indices in range, the right count, the same from the same seed."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from halftone.calibrate.select.normal import Normal
from halftone.calibrate.select.part import Part
from halftone.calibrate.select.uniform import Uniform
from halftone.foundation.errors import ConfigError
from halftone.foundation.registry import make, names
from halftone.foundation.seeds import generator

PACKAGE = "halftone.calibrate.select"


def choose(strategy: object, calls: int, count: int, seed: int = 0) -> list[int]:
    return strategy.choose(calls, count, generator(seed, "test")).tolist()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", names(PACKAGE))
@given(calls=st.integers(1, 120), count=st.integers(1, 300), seed=st.integers(0, 9))
def test_every_strategy(name: str, calls: int, count: int, seed: int) -> None:
    strategy = make(PACKAGE, name, "select")
    found = strategy.choose(calls, count, generator(seed, "test"))
    assert (found.dtype, found.shape) == (torch.int64, (count,))
    assert 0 <= int(found.min()) <= int(found.max()) < calls
    assert choose(strategy, calls, count, seed) == found.tolist()
    assert found.tolist() == sorted(found.tolist())


@given(calls=st.integers(1, 120), steps=st.integers(1, 60), count=st.integers(1, 300))
def test_uniform_covers_the_whole_range_evenly(calls: int, steps: int, count: int) -> None:
    found = choose(Uniform(steps), calls, count)
    kept = sorted(set(found))
    assert len(kept) == min(steps, calls, count)
    assert kept[0] == 0
    gaps = [b - a for a, b in zip(kept, [*kept[1:], calls], strict=True)]
    assert max(gaps) - min(gaps) <= 1
    counts = [found.count(index) for index in kept]
    assert max(counts) - min(counts) <= 1


def test_uniform_by_hand() -> None:
    """Every c-th step, as many from each (Algorithm 1 of Q-Diffusion)."""
    assert choose(Uniform(20), 100, 40) == [i for i in range(0, 100, 5) for _ in range(2)]


@pytest.mark.parametrize(("which", "indices"), [("first", range(5)), ("middle", range(2, 7)), ("last", range(5, 10))])
def test_parts(which: str, indices: range) -> None:
    assert choose(Part(which), 10, 5) == list(indices)  # type: ignore[arg-type]
    assert set(choose(Part(which), 10, 23)) == set(indices)  # type: ignore[arg-type]


def test_a_tiny_part_is_still_one_call() -> None:
    assert [choose(Part(which, 0.01), 10, 2) for which in ("first", "middle", "last")] == [[0, 0], [4, 4], [9, 9]]  # type: ignore[arg-type]


def test_normal_leans_to_the_clean_side() -> None:
    found = torch.tensor(choose(Normal(), 101, 4000)).float()
    # t = 1 is noise and call 0; a mean of 0.4 lies at call 60, and what falls outside is clamped to both ends.
    assert abs(float(found.median()) - 60) < 3
    assert (found == 100).float().mean() > (found == 0).float().mean() > 0.03


def test_random_differs_between_seeds() -> None:
    strategy = make(PACKAGE, "random", "select")
    assert choose(strategy, 50, 40, seed=1) != choose(strategy, 50, 40, seed=2)


@pytest.mark.parametrize(
    "described",
    [
        {"name": "part", "share": 1.5},
        {"name": "part", "share": 0},
        {"name": "part", "which": "frist"},
        {"name": "uniform", "steps": 0},
        {"name": "unifrom"},
    ],
    ids=str,
)
def test_nonsense_is_refused(described: dict) -> None:
    with pytest.raises(ConfigError):
        make(PACKAGE, described, "calibration.select")
