"""Samples that count differently: drawn often, counted less each time, and the mean stays that of all."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halftone.foundation.seeds import generator
from halftone.methods.importance import Importance

WEIGHTS = st.lists(st.floats(0.001, 1000), min_size=2, max_size=12).map(torch.tensor)


def test_without_weights_samples_are_drawn_once_each() -> None:
    drawn = Importance(10).draw(10, generator(0))
    assert sorted(drawn.tolist()) == list(range(10))
    values = torch.randn(10, 3)
    assert torch.equal(Importance(10).mean(values, drawn), values.mean())


@given(WEIGHTS)
def test_the_mean_over_draws_expects_the_weighted_mean_of_all(weights: torch.Tensor) -> None:
    """The expectation over what may be drawn, computed from the odds, is the weighted mean: nothing is favoured."""
    count = len(weights)
    importance = Importance(count, weights)
    values = torch.arange(1.0, count + 1).unsqueeze(1).double()
    one_by_one = torch.stack([importance.mean(values[[i]], torch.tensor([i])) for i in range(count)])
    expected = (weights.double() * values.squeeze(1)).sum() / weights.double().sum()
    assert float((importance.odds * one_by_one).sum()) == pytest.approx(float(expected), rel=1e-6)


@given(WEIGHTS)
def test_sums_over_parts_are_those_of_the_whole(weights: torch.Tensor) -> None:
    count = len(weights)
    importance, values = Importance(count, weights), torch.randn(count, 4).double()
    whole = importance.sum(values, torch.arange(count))
    parts = [importance.sum(values[i], i) for i in torch.arange(count).split(5)]
    assert sum(total for total, _ in parts) == pytest.approx(whole[0], rel=1e-9, abs=1e-9)
    assert sum(weight for _, weight in parts) == pytest.approx(whole[1]) == pytest.approx(count)


def test_what_counts_nothing_is_looked_at_now_and_then() -> None:
    importance = Importance(4, torch.tensor([0.0, 1.0, 1.0, 1.0]))
    drawn = torch.cat([importance.draw(4, generator(0, i)) for i in range(200)])
    assert 0 < int((drawn == 0).sum()) < int((drawn == 1).sum()) / 4
