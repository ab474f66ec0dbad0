"""Range estimators, listed from their folder: what every one must keep, and what each of ours promises.

Laws held here: one group per row is per channel; odd groups give finite ranges; the shrink search is never worse than min-max by
its own measure; the moving average of equal batches is min-max; a split with equal scales is no split.
"""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from halftone.formats import fake_quantize
from halftone.foundation.errors import ConfigError
from halftone.foundation.registry import names
from halftone.quant import QuantSpec
from halftone.quant.ranges.shrink import Shrink
from halftone.quant.weights import range_estimator, weight_affine

RANGES = names("halftone.quant.ranges")
SPECS = [QuantSpec("uint4"), QuantSpec("uint8"), QuantSpec("int3"), QuantSpec("uint4", zero="symmetric")]


@st.composite
def batches(draw: st.DrawFn) -> list[torch.Tensor]:
    """Draw some batches of values in groups, with outliers and an offset."""
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    groups, size = draw(st.integers(1, 4)), draw(st.integers(1, 50))
    made = [torch.randn(groups, size, generator=random) for _ in range(draw(st.integers(1, 3)))]
    offset = draw(st.sampled_from([0.0, 0.0, 4.0, -4.0]))
    return [b * b.abs() ** draw(st.sampled_from([0.0, 2.0])) + offset for b in made]


def error(values: torch.Tensor, low: torch.Tensor, high: torch.Tensor, spec: QuantSpec, power: float) -> torch.Tensor:
    """Return the mean |x - x_hat|^power of each group."""
    rounded = fake_quantize(values, spec.affine(low, high).view(-1, 1), spec.number_format)
    return (values - rounded).abs().pow(power).mean(1)


@pytest.mark.parametrize("name", RANGES)
@settings(max_examples=30)
@given(data=batches(), spec=st.sampled_from(SPECS))
def test_a_range_lies_within_what_was_seen(name: str, data: list[torch.Tensor], spec: QuantSpec) -> None:
    before = [b.clone() for b in data]
    low, high = range_estimator(name).fit(iter(data), spec)
    assert (low.dtype, low.shape, high.shape) == (torch.float32, (len(data[0]),), (len(data[0]),))
    assert bool((low <= high).all())
    joined = torch.cat(data, 1)
    slack = 1e-6 * joined.abs().amax(1)
    # A range that is all on one side of zero may be drawn towards zero, which every grid holds.
    assert bool((low >= joined.amin(1).clamp(max=0) - slack).all())
    assert bool((high <= joined.amax(1).clamp(min=0) + slack).all())
    assert all(torch.equal(a, b) for a, b in zip(before, data, strict=True))


@pytest.mark.parametrize("name", RANGES)
@settings(max_examples=20)
@given(data=batches(), spec=st.sampled_from(SPECS))
def test_groups_do_not_know_each_other(name: str, data: list[torch.Tensor], spec: QuantSpec) -> None:
    together = range_estimator(name).fit(data, spec)
    for row in range(len(data[0])):
        alone = range_estimator(name).fit([b[row : row + 1] for b in data], spec)
        # Sums of one row and of many may be rounded differently, which can only turn a tie of the search.
        if name == "shrink":
            errors = [
                error(torch.cat(data, 1)[row : row + 1], low, high, spec, 2.4)
                for low, high in (alone, (together[0][row : row + 1], together[1][row : row + 1]))
            ]
            assert float(errors[0]) == pytest.approx(float(errors[1]), rel=1e-4, abs=1e-12)
        else:
            assert torch.equal(torch.cat(alone), torch.stack([together[0][row], together[1][row]]))


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("value", [0.0, 1e-42, -1e-42, 3.0, -3.0, 1e30])
def test_a_group_of_equal_values_has_a_usable_range(name: str, value: float) -> None:
    spec = QuantSpec("uint4")
    affine = spec.affine(*range_estimator(name).fit([torch.full((2, 9), value)], spec))
    assert bool(torch.isfinite(affine.scale).all() and (affine.scale > 0).all())
    found = fake_quantize(torch.full((2, 9), value), affine.view(-1, 1), spec.number_format)
    assert float((found - value).abs().max()) <= max(0.5 * float(affine.scale.max()), 1e-5 * abs(value))


@given(data=batches(), spec=st.sampled_from(SPECS), power=st.sampled_from([1.0, 2.0, 2.4]))
def test_shrinking_is_never_worse_than_min_max(data: list[torch.Tensor], spec: QuantSpec, power: float) -> None:
    values = torch.cat(data, 1)
    shrunk = Shrink(power=power).fit(data, spec)
    plain = range_estimator("min_max").fit(data, spec)
    assert bool((error(values, *shrunk, spec, power) <= error(values, *plain, spec, power)).all())


def test_shrinking_pays_when_there_is_an_outlier() -> None:
    values = torch.cat([torch.randn(1, 2000), torch.tensor([[12.0]])], 1)
    spec = QuantSpec("uint4")
    shrunk, plain = (range_estimator(name).fit([values], spec) for name in ("shrink", "min_max"))
    assert float(error(values, *shrunk, spec, 2.4)) < 0.7 * float(error(values, *plain, spec, 2.4))


def test_shrinking_searches_all_its_candidates() -> None:
    """Of a two-valued group only the last factor puts both values on the grid."""
    values = torch.tensor([[0.0, 1.0] * 1000 + [5.0]])  # 5 is clipped to 1.05 at the factor 0.21
    low, high = Shrink(power=1.0).fit([values], QuantSpec("uint1"))
    assert (float(low), float(high)) == (0.0, pytest.approx(1.05))


def test_thinning_keeps_the_range() -> None:
    values = torch.randn(2, 1000)
    values[:, 501] = torch.tensor([9.0, -9.0])
    full = Shrink(candidates=1, at_most=10).fit([values], QuantSpec("uint8"))
    assert torch.equal(torch.stack(full), torch.stack([values.amin(1), values.amax(1)]))


def test_the_moving_average_of_equal_batches_is_min_max() -> None:
    data = [torch.randn(3, 40)] * 50
    for mine, plain in zip(
        *(range_estimator(n).fit(data, SPECS[0]) for n in ("moving_average", "min_max")), strict=True
    ):
        assert torch.allclose(mine, plain, rtol=1e-5, atol=0)


def test_the_moving_average_by_hand() -> None:
    data = [torch.tensor([[-1.0, 2.0]]), torch.tensor([[-3.0, 4.0]])]
    low, high = range_estimator({"name": "moving_average", "momentum": 0.5}).fit(data, SPECS[0])
    assert (float(low), float(high)) == (-2.0, 3.0)


def test_min_max_looks_at_every_batch() -> None:
    data = [torch.tensor([[1.0, 2.0]]), torch.tensor([[-5.0, 0.0]]), torch.tensor([[9.0, 1.0]])]
    assert [float(v) for v in range_estimator("min_max").fit(data, SPECS[0])] == [-5.0, 9.0]


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 3, 3)])
def test_a_weight_has_one_scale_a_row_and_segment(name: str, shape: tuple[int, ...]) -> None:
    weight, spec = torch.randn(shape), QuantSpec("uint4", "channel")
    affine = weight_affine(weight, (2, 4), spec, name)
    assert affine.scale.shape == affine.zero_point.shape == (2, 5)
    for s, part in enumerate(weight.split([2, 4], dim=1)):
        for row in range(5):
            alone = weight_affine(part[row : row + 1], (part.shape[1],), spec, name)
            assert float(affine.scale[s, row]) == pytest.approx(float(alone.scale), rel=1e-5)


def test_per_tensor_is_one_scale_for_all_rows() -> None:
    weight = torch.randn(5, 6)
    affine = weight_affine(weight, (6,), QuantSpec("uint4", "tensor"), "min_max")
    wanted = QuantSpec("uint4").affine(weight.amin().view(1), weight.amax().view(1))
    assert torch.equal(affine.scale, wanted.scale.expand(1, 5))


def test_per_channel_of_one_row_is_per_tensor() -> None:
    weight = torch.randn(1, 30)
    channel, tensor = (weight_affine(weight, (30,), QuantSpec("uint4", g), "min_max") for g in ("channel", "tensor"))  # type: ignore[arg-type]
    assert torch.equal(channel.scale, tensor.scale)


@pytest.mark.parametrize("described", ["min-max", {"name": "min_max"}, "min_max"])
def test_an_estimator_is_found_by_name(described: Any) -> None:
    assert type(range_estimator(described)).__name__ == "MinMax"


@pytest.mark.parametrize(
    ("described", "words"),
    [("shrnk", "Did you mean 'shrink'"), ({"name": "shrink", "powr": 2}, "Did you mean 'power'"), ({}, "range.name")],
)
def test_a_wrong_estimator_is_refused(described: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        range_estimator(described)
