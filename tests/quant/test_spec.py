"""From a range to an affine map: finite positive scales whatever the group, zero points on the grid, zero exact."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from halftone.formats import dequantize, fake_quantize, quantize
from halftone.foundation.build import build, plain
from halftone.foundation.errors import ConfigError, FormatError
from halftone.quant import QuantSpec

BIG = 2e38  # twice this overflows float32
ODD_GROUPS = {
    "zero": [0.0, 0.0],
    "equal": [3.0, 3.0],
    "equal and negative": [-3.0, -3.0],
    "denormal": [-1e-42, 1e-42],
    "tiny": [-1e-30, 1e-31],
    "huge": [-BIG, BIG],
    "huge and positive": [0.0, BIG],
    "almost one-sided": [-1e-30, 1e30],
}
FORMATS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (*range(2, 9), 16)] + ["uint1", "int1"]
ZEROS = ["asymmetric", "symmetric", "none"]


def valid(format: str, zero: str) -> bool:
    """Whether a grid of the mode has a level above zero."""
    return not (zero == "symmetric" and format in ("uint1", "int1")) and not (zero == "none" and format == "int1")


SPECS = [QuantSpec(f, zero=z) for f in FORMATS for z in ZEROS if valid(f, z)]  # type: ignore[arg-type]


@pytest.mark.parametrize("group", ODD_GROUPS.values(), ids=ODD_GROUPS)
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.format}-{s.zero}")
def test_odd_groups_give_finite_positive_scales(spec: QuantSpec, group: list[float]) -> None:
    if spec.bits == 1 and group[1] - group[0] > 3.4e38:
        pytest.skip("the one step of this grid would be larger than any float32")
    low, high = torch.tensor(group[:1]), torch.tensor(group[1:])
    affine, grid = spec.affine(low, high), spec.number_format
    for scale in (affine.scale, affine.scale.reciprocal()):
        assert bool(torch.isfinite(scale).all())
        assert bool((scale > 0).all())
    assert bool(torch.isfinite(fake_quantize(torch.tensor(group), affine, grid)).all())
    if spec.zero == "asymmetric":
        assert torch.equal(grid.round(affine.zero_point), affine.zero_point)
        assert float(dequantize(quantize(torch.zeros(1), affine, grid), affine, grid)) == 0.0


@given(
    spec=st.sampled_from(SPECS),
    low=st.floats(-1e6, 1e6, width=32),
    width=st.floats(0, 1e6, width=32),
)
def test_the_range_is_covered_to_half_a_step(spec: QuantSpec, low: float, width: float) -> None:
    ends = torch.tensor([low, low + width])
    if spec.zero == "none" and spec.number_format.low == 0:
        ends = ends.clamp(min=0)
    affine = spec.affine(ends[:1], ends[1:])
    error = (fake_quantize(ends, affine, spec.number_format) - ends).abs()
    # A symmetric grid has one level more below than above, so its upper end may lie a step and a half inside.
    # At 16 bits what float32 cannot tell apart is a part of a step.
    rounding = 2 * torch.finfo(torch.float32).eps * ends.abs()
    assert bool((error <= affine.scale * (0.5 + 1e-3) + rounding + 1e-12).all())


@given(spec=st.sampled_from(SPECS), low=st.floats(-10, 10), high=st.floats(-10, 10))
def test_zero_is_on_every_grid(spec: QuantSpec, low: float, high: float) -> None:
    affine = spec.affine(torch.tensor([min(low, high)]), torch.tensor([max(low, high)]))
    assert float(fake_quantize(torch.zeros(1), affine, spec.number_format)) == 0.0


@pytest.mark.parametrize(
    ("format", "zero", "zero_point"),
    [
        ("uint8", "symmetric", 128),
        ("int8", "symmetric", 0),
        ("uint4", "symmetric", 8),
        ("uint8", "none", 0),
        ("int8", "none", 0),
    ],
)
def test_fixed_zero_points(format: str, zero: str, zero_point: float) -> None:
    spec = QuantSpec(format, zero=zero)  # type: ignore[arg-type]
    assert spec.affine(torch.tensor([-3.0, 0.0]), torch.tensor([1.0, 5.0])).zero_point.tolist() == [zero_point] * 2


def test_scales_by_hand() -> None:
    low, high = torch.tensor([-1.0]), torch.tensor([3.0])
    assert float(QuantSpec("uint4").affine(low, high).scale) == pytest.approx(4 / 15)
    assert float(QuantSpec("uint4").affine(low, high).zero_point) == 4  # 1 / (4 / 15) = 3.75
    assert float(QuantSpec("uint4", zero="symmetric").affine(low, high).scale) == pytest.approx(3 / 7)
    assert float(QuantSpec("uint4", zero="none").affine(low, high).scale) == pytest.approx(3 / 15)
    assert float(QuantSpec("int4").affine(low, high).zero_point) == -4


@pytest.mark.parametrize(("format", "zero"), [("uint1", "symmetric"), ("int1", "symmetric"), ("int1", "none")])
def test_a_grid_without_a_level_above_zero_is_refused(format: str, zero: str) -> None:
    with pytest.raises(ConfigError, match="above"):
        QuantSpec(format, zero=zero)  # type: ignore[arg-type]


def test_an_unknown_format_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="uint4 or int8"):
        QuantSpec("floaty")
    with pytest.raises(FormatError):
        QuantSpec("uint20")


@pytest.mark.parametrize(
    "words",
    [{"scale": "dynamic"}, {"scale": "per_step"}, {"scale": "per_step", "bins": 20}, {"bins": 4}, {"group": 64}],
    ids=str,
)
def test_words_that_are_reserved_are_refused(words: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="not built yet"):
        QuantSpec(**words)
    with pytest.raises(ConfigError, match="not built yet"):
        build(QuantSpec, {"format": "uint8", **words}, "policy.0.input")


def test_a_mistyped_word_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"policy\.0\.input\.scale.*Did you mean 'dynamic'"):
        build(QuantSpec, {"scale": "dynamc"}, "policy.0.input")


def test_the_reserved_words_are_not_written_at_their_defaults() -> None:
    spec = QuantSpec("uint4", "channel", scale="static", bins=1, group=0)
    assert plain(spec) == {"format": "uint4", "granularity": "channel", "zero": "asymmetric"}
    assert build(QuantSpec, plain(spec)) == spec
    assert build(QuantSpec, {"scale": "static", "bins": 1, "group": 0}) == QuantSpec()
