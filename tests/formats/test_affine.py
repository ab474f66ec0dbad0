"""The affine map: one definition, with and without codes; zero is exact; segments are independent groups."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from halftone.formats import Affine, dequantize, fake_quantize, parse, quantize
from halftone.formats.segments import along_input, along_weight

FORMATS = st.sampled_from([f"{sign}int{bits}" for sign in ("", "u") for bits in (*range(1, 9), 12, 16)])


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, Affine, str]:
    """Draw data that reach past the grid, a scale and a zero point on the grid."""
    name = draw(FORMATS)
    grid = parse(name)
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    scale = torch.tensor(10 ** draw(st.floats(-6, 3)), dtype=torch.float32)
    zero_point = torch.tensor(float(draw(st.integers(int(grid.low), int(grid.high)))))
    return torch.randn(40, generator=random) * scale * 2**grid.bits, Affine(scale, zero_point), name


@given(cases())
def test_fake_quantization_is_the_round_trip_through_codes(case: tuple[torch.Tensor, Affine, str]) -> None:
    x, affine, name = case
    grid = parse(name)
    assert torch.equal(fake_quantize(x, affine, grid), dequantize(quantize(x, affine, grid), affine, grid))


@given(cases())
def test_zero_is_exact(case: tuple[torch.Tensor, Affine, str]) -> None:
    _, affine, name = case
    assert float(fake_quantize(torch.zeros(1), affine, parse(name))) == 0.0


@given(cases())
def test_the_error_is_at_most_half_a_step_in_range(case: tuple[torch.Tensor, Affine, str]) -> None:
    x, affine, name = case
    grid = parse(name)
    low, high = ((bound - affine.zero_point) * affine.scale for bound in (grid.low, grid.high))
    inside = x[(x >= low) & (x <= high)]
    # The division by the scale is rounded: a value within an ulp of a tie may go either way.
    slack = 0.5 + 2**-20 * 2**grid.bits
    assert bool(((fake_quantize(inside, affine, grid) - inside).abs() <= slack * affine.scale).all())
    outside = fake_quantize(torch.stack([low * 2 - 10 * affine.scale, high * 2 + 10 * affine.scale]), affine, grid)
    assert torch.equal(outside, torch.stack([low, high]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_fake_quantization_keeps_the_dtype(dtype: torch.dtype) -> None:
    affine = Affine(torch.tensor(0.5), torch.tensor(8.0))
    found = fake_quantize(torch.tensor([0.3, -9.0, 9.0], dtype=dtype), affine, parse("uint4"))
    assert found.dtype == dtype
    assert found.tolist() == [0.5, -4.0, 3.5]


def test_the_reciprocal_is_the_definition_at_ties() -> None:
    """x * (1 / s) and x / s round differently here; kernels multiply."""
    scale = torch.tensor(0.1) * torch.arange(1, 2000)
    x = scale * 2.5
    wanted = (x * (1 / scale)).round()
    assert bool((wanted != (x / scale).round()).any()), "the example shows nothing"
    assert torch.equal(quantize(x, Affine(scale, torch.zeros(())), parse("uint8")).float(), wanted)


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    dim=st.sampled_from([1, -1]),
    ndim=st.integers(2, 4),
    seed=st.integers(0, 100),
)
def test_input_segments_are_quantized_each_alone(sizes: list[int], dim: int, ndim: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    shape = [3] * ndim
    shape[dim] = sum(sizes)
    x, grid = torch.randn(shape, generator=random), parse("uint4")
    affine = Affine(torch.rand(len(sizes), generator=random) + 0.1, torch.arange(len(sizes)).float())
    whole = fake_quantize(x, along_input(affine, tuple(sizes), ndim, dim), grid)
    parts = [
        fake_quantize(part, Affine(affine.scale[i], affine.zero_point[i]), grid)
        for i, part in enumerate(x.split(sizes, dim=dim))
    ]
    assert torch.equal(whole, torch.cat(parts, dim=dim))


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3), ndim=st.sampled_from([2, 4]), seed=st.integers(0, 100)
)
def test_weight_segments_are_quantized_each_alone(sizes: list[int], ndim: int, seed: int) -> None:
    random, out = torch.Generator().manual_seed(seed), 4
    weight = torch.randn(out, sum(sizes), *[3] * (ndim - 2), generator=random)
    affine = Affine(
        torch.rand(len(sizes), out, generator=random) + 0.1, torch.arange(len(sizes) * out).float().view(-1, out)
    )
    grid = parse("uint4")
    whole = fake_quantize(weight, along_weight(affine, tuple(sizes), ndim), grid)
    parts = []
    for i, part in enumerate(weight.split(sizes, dim=1)):
        rows = [fake_quantize(part[o], Affine(affine.scale[i, o], affine.zero_point[i, o]), grid) for o in range(out)]
        parts.append(torch.stack(rows))
    assert torch.equal(whole, torch.cat(parts, dim=1))


@pytest.mark.parametrize("ndim", [2, 4])
def test_equal_scales_in_all_segments_are_no_segments(ndim: int) -> None:
    one = Affine(torch.rand(1, 4) + 0.1, torch.ones(1, 4))
    three = Affine(one.scale.expand(3, 4), one.zero_point.expand(3, 4))
    weight = torch.randn(4, 6, *[3] * (ndim - 2))
    split = fake_quantize(weight, along_weight(three, (1, 2, 3), ndim), parse("uint4"))
    assert torch.equal(split, fake_quantize(weight, along_weight(one, (6,), ndim), parse("uint4")))
