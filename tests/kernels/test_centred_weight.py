"""Weights in one byte each are the codes minus their zero points, wherever that fits, and refused wherever it does not."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from halftone.formats import Affine, parse
from halftone.kernels import Operands, Operation
from halftone.kernels.centred_weight import centred, span, sums_may_overflow


@st.composite
def layers(draw: st.DrawFn) -> tuple[Operation, Operands, torch.Tensor]:
    """Return a layer and, in float64, the weight that its codes stand for before the scale."""
    name = draw(st.sampled_from(["uint2", "uint4", "int4", "uint8", "int8"]))
    segments = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    out, wide = draw(st.integers(1, 5)), draw(st.booleans())
    format, random = parse(name), torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    tail = (2, 3) if wide else ()
    codes = torch.randint(0, 2**format.bits, (out, sum(segments), *tail), generator=random, dtype=torch.uint8)
    zero = torch.randint(int(format.low), int(format.high) + 1, (len(segments), out), generator=random).float()
    kind, kernel = ("conv2d", (2, 3)) if wide else ("linear", (1, 1))
    operation = Operation(kind, sum(segments), out, segments, format, parse("uint8"), kernel)
    spread = zero.double().repeat_interleave(torch.tensor(segments), dim=0).t().view(out, -1, *[1] * len(tail))
    exact = format.decode(codes).double() - spread
    return operation, Operands(codes, Affine(torch.ones_like(zero), zero), None, None), exact


@given(layers())
def test_it_is_the_definition_or_a_refusal(layer: tuple[Operation, Operands, torch.Tensor]) -> None:
    operation, operands, exact = layer
    found = span(operation, operands)
    low, high = int(exact.min()), int(exact.max())
    if low < -128 or high > 127:
        assert isinstance(found, str) and f"[{low}, {high}], beyond int8" in found
        return
    assert found == (low, high)
    weight = centred(operation, operands)
    assert weight.dtype == torch.int8 and torch.equal(weight.double(), exact)
    assert not sums_may_overflow(operation, operands, max(-low, high))


def test_a_zero_point_between_codes_is_refused() -> None:
    operation = Operation("linear", 2, 1, (2,), parse("uint4"), parse("uint8"))
    operands = Operands(
        torch.zeros(1, 2, dtype=torch.uint8), Affine(torch.ones(1, 1), torch.tensor([[0.5]])), None, None
    )
    assert "not an integer" in str(span(operation, operands))


def test_long_sums_are_counted() -> None:
    """The bound from the largest weight may be passed while the sums themselves are far from it."""
    terms = 2**17
    operation = Operation("linear", terms, 2, (terms,), parse("int8"), parse("uint8"))
    codes = torch.full((2, terms), 128, dtype=torch.uint8)  # zero
    codes[0, 0] = 255
    affine = Affine(torch.ones(1, 2), torch.zeros(1, 2))
    assert not sums_may_overflow(operation, Operands(codes, affine, None, None), 127)
    codes[1] = 255
    assert sums_may_overflow(operation, Operands(codes, affine, None, None), 127)
