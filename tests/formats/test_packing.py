"""Codes become bytes and come back: bijective at every width, both extremes and odd lengths; the bytes themselves are fixed."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from halftone.formats import pack, packed_size, unpack
from halftone.foundation.errors import FormatError


@st.composite
def packable(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """Draw codes of some width, of some rows of any length, zero included."""
    bits, count, rows = draw(st.integers(1, 8)), draw(st.integers(0, 41)), draw(st.integers(1, 3))
    code = st.one_of(st.just(0), st.just(2**bits - 1), st.integers(0, 2**bits - 1))
    values = draw(st.lists(code, min_size=rows * count, max_size=rows * count))
    return torch.tensor(values, dtype=torch.uint8).view(rows, count), bits


@given(packable())
def test_unpacking_gives_the_codes_back(case: tuple[torch.Tensor, int]) -> None:
    codes, bits = case
    packed = pack(codes, bits)
    assert (packed.dtype, packed.shape) == (torch.uint8, (len(codes), packed_size(codes.shape[1], bits)))
    assert torch.equal(unpack(packed, bits, codes.shape[1]), codes)


@given(packable())
def test_the_bytes_are_a_little_endian_number(case: tuple[torch.Tensor, int]) -> None:
    codes, bits = case
    for row, packed in zip(codes.tolist(), pack(codes, bits).tolist(), strict=True):
        number = sum(code << (bits * place) for place, code in enumerate(row))
        assert bytes(packed) == number.to_bytes(packed_size(len(row), bits), "little")


@given(bits=st.integers(1, 8), bytes_=st.integers(0, 5), seed=st.integers(0, 1000))
def test_whole_bytes_come_back_from_their_codes(bits: int, bytes_: int, seed: int) -> None:
    size = bytes_ * bits  # so that no padding bits exist
    packed = torch.randint(0, 256, (2, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(pack(unpack(packed, bits, bytes_ * 8), bits), packed)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 3, 7, 8, 9])
def test_extremes(bits: int, count: int) -> None:
    for value in (0, 2**bits - 1):
        codes = torch.full((count,), value, dtype=torch.uint8)
        assert torch.equal(unpack(pack(codes, bits), bits, count), codes)


@pytest.mark.parametrize(
    ("bits", "codes", "packed"),
    [
        (4, [1, 2, 3], "21 03"),
        (4, [15, 0, 10, 5], "0f 5a"),
        (3, [1, 2, 3], "d1 00"),
        (3, [1, 2, 3, 7, 5, 0, 6, 4], "d1 5e 98"),
        (2, [1, 2, 3, 0, 2], "39 02"),
        (1, [1, 0, 0, 0, 0, 0, 0, 1, 1], "81 01"),
        (5, [1, 31], "e1 03"),
        (8, [0, 255, 18], "00 ff 12"),
    ],
)
def test_golden_bytes(bits: int, codes: list[int], packed: str) -> None:
    assert pack(torch.tensor(codes, dtype=torch.uint8), bits).tolist() == list(bytes.fromhex(packed))


@pytest.mark.parametrize(("count", "bits", "size"), [(0, 4, 0), (1, 1, 1), (8, 3, 3), (9, 3, 4), (3, 4, 2), (7, 8, 7)])
def test_packed_size(count: int, bits: int, size: int) -> None:
    assert packed_size(count, bits) == size


@pytest.mark.parametrize("bits", range(1, 8))
def test_a_code_out_of_range_is_refused(bits: int) -> None:
    with pytest.raises(FormatError, match=f"below {2**bits}"):
        pack(torch.tensor([0, 2**bits], dtype=torch.uint8), bits)


def test_codes_that_are_not_bytes_are_refused() -> None:
    with pytest.raises(FormatError, match="uint8"):
        pack(torch.tensor([1, 2]), 4)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3)])
def test_a_row_of_the_wrong_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(FormatError, match=r"\[..., 2\] for 3 codes"):
        unpack(torch.zeros(shape, dtype=torch.uint8), 4, 3)
    with pytest.raises(FormatError, match="int64"):
        unpack(torch.zeros(2, dtype=torch.int64), 4, 3)


def test_packing_copies() -> None:
    codes = torch.tensor([1, 2], dtype=torch.uint8)
    packed = pack(codes, 8)
    packed[0] = 9
    assert codes.tolist() == [1, 2]
    unpack(packed, 8, 2)[0] = 0
    assert packed.tolist() == [9, 2]
