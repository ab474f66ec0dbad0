"""Every number format keeps the laws of a grid. The folder is listed: a new format is tested here without an edit.

Laws held here: rounding is idempotent, monotone and goes to the nearest grid number; decode(encode(x)) = round(x); both bounds
are on the grid and reached; a format's name reads back as the format.
"""

import dataclasses
import itertools
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from halftone.formats import AbstractFormat, parse
from halftone.formats.kinds.integer import Integer
from halftone.foundation.errors import ConfigError, FormatError
from halftone.foundation.registry import find, names

KINDS = "halftone.formats.kinds"


def instances(kind: str) -> list[AbstractFormat]:
    """Return formats of a kind: every width from 1 to 16 that it accepts, with every combination of its switches."""
    cls = find(KINDS, kind)
    assert dataclasses.is_dataclass(cls), f"{kind} is not a dataclass"
    fields = [field.name for field in dataclasses.fields(cls)]
    choices: list[list[tuple[str, object]]] = [[("bits", n) for n in range(1, 17)]] if "bits" in fields else []
    choices += [[(f.name, False), (f.name, True)] for f in dataclasses.fields(cls) if f.type in (bool, "bool")]
    made = []
    for combination in itertools.product(*choices):
        try:
            made.append(cls(**dict(combination)))
        except FormatError:
            continue
    return made


def grid(format: AbstractFormat) -> torch.Tensor:
    """Return the numbers of all codes."""
    return format.decode(torch.arange(2**format.bits).to(format.code_dtype))


def numbers(format: AbstractFormat, values: list[float]) -> torch.Tensor:
    """Return ``values`` with what is interesting about the format: grid numbers, the middles between them, far outside."""
    points = grid(format).sort().values
    points = torch.cat([points[:: max(1, len(points) // 512)], points[-2:]])
    middles = (points[1:] + points[:-1]) / 2
    far = torch.tensor([-torch.inf, -1e30, 1e30, torch.inf])
    return torch.cat([torch.tensor(values, dtype=torch.float32), points, middles, far])


def rounds_idempotently(format: AbstractFormat, x: torch.Tensor) -> None:
    assert torch.equal(format.round(format.round(x)), format.round(x))


def rounds_monotonically(format: AbstractFormat, x: torch.Tensor) -> None:
    assert bool((format.round(x.sort().values).diff() >= 0).all())


def rounds_to_the_nearest(format: AbstractFormat, x: torch.Tensor) -> None:
    """At most half a step in range, and the bound beyond it."""
    x = x[torch.isfinite(x)]
    points, x64 = grid(format).double().sort().values, x.double()
    above = torch.searchsorted(points, x64).clamp(max=len(points) - 1)
    distance = torch.minimum((points[above] - x64).abs(), (points[(above - 1).clamp(min=0)] - x64).abs())
    assert torch.equal((format.round(x).double() - x64).abs(), distance)


def decodes_what_it_encoded(format: AbstractFormat, x: torch.Tensor) -> None:
    codes = format.encode(x)
    assert (codes.dtype, codes.shape) == (format.code_dtype, x.shape)
    assert int(codes.max()) < 2**format.bits
    decoded = format.decode(codes)
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, format.round(x))


def reaches_its_bounds(format: AbstractFormat, x: torch.Tensor) -> None:
    points = grid(format)
    assert (float(points.min()), float(points.max())) == (format.low, format.high)
    far = format.round(torch.tensor([-torch.inf, -1e30, 1e30, torch.inf]))
    assert far.tolist() == [format.low, format.low, format.high, format.high]


def keeps_dtype_and_input(format: AbstractFormat, x: torch.Tensor) -> None:
    for dtype in (torch.float32, torch.float64):
        given_x = x.to(dtype)
        before = given_x.clone()
        assert format.round(given_x).dtype == dtype
        assert torch.equal(given_x, before)


def reads_its_name_back(format: AbstractFormat, x: torch.Tensor) -> None:
    assert parse(format.name) == format
    assert type(format).parse("no such format") is None


def is_frozen_and_hashable(format: AbstractFormat, x: torch.Tensor) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        format.bits = 3
    assert len({format, dataclasses.replace(format)}) == 1  # type: ignore[type-var]


def says_what_its_grid_is(format: AbstractFormat, x: torch.Tensor) -> None:
    points = grid(format).sort().values
    if format.integral:
        assert bool((points.diff() == 1).all() and (points == points.round()).all())
    # The middle of one bit lies at the end of the grid or beyond, so nothing can be symmetric around it.
    if format.bits > 1:
        assert float(format.round(torch.tensor(format.middle))) == format.middle


LAWS = [
    says_what_its_grid_is,
    rounds_idempotently,
    rounds_monotonically,
    rounds_to_the_nearest,
    decodes_what_it_encoded,
    reaches_its_bounds,
    keeps_dtype_and_input,
    reads_its_name_back,
    is_frozen_and_hashable,
]
FORMATS = [format for kind in names(KINDS) for format in instances(kind)]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@given(format=st.sampled_from(FORMATS), values=st.lists(st.floats(-400, 400, width=32), max_size=30))
def test_law(law: Callable[[AbstractFormat, torch.Tensor], None], format: AbstractFormat, values: list[float]) -> None:
    law(format, numbers(format, values))


@pytest.mark.parametrize("kind", names(KINDS))
def test_every_kind_has_instances_to_test(kind: str) -> None:
    assert instances(kind)


def test_integers_come_in_all_widths_signed_and_not() -> None:
    found = {format.name for format in instances("integer")}
    assert all(format.integral for format in instances("integer"))
    assert found == {f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 17)}


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("uint4", 0, 15), ("int4", -8, 7), ("uint8", 0, 255), ("int8", -128, 127), ("int1", -1, 0), ("uint16", 0, 65535)],
)
def test_integer_bounds(name: str, low: float, high: float) -> None:
    assert (parse(name).low, parse(name).high) == (low, high)


def test_codes_are_bytes_where_they_fit() -> None:
    assert [parse(name).code_dtype for name in ("uint8", "int9", "uint16")] == [torch.uint8, torch.int32, torch.int32]


def test_integers_round_half_to_even() -> None:
    assert parse("int8").round(torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])).tolist() == [-2, 0, 0, 2, 2]


@pytest.mark.parametrize("name", ["uint0", "uint17", "int32"])
def test_an_impossible_width_is_refused(name: str) -> None:
    with pytest.raises(FormatError, match="1 to 16 bits"):
        parse(name)


@pytest.mark.parametrize("name", ["", "uint", "UINT4", "uint4 ", "4", "nf4x"])
def test_an_unknown_name_is_refused_with_the_kinds(name: str) -> None:
    with pytest.raises(ConfigError, match="integer"):
        parse(name)


def test_equal_formats_are_one() -> None:
    assert parse("uint4") is parse("uint4")
    assert parse("int4") == Integer(4, signed=True) != parse("uint4")
