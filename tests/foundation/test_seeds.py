"""Named random streams."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from halftone.foundation.seeds import generator, subseed


@given(st.integers(0, 2**64), st.lists(st.text(max_size=5), max_size=4))
def test_subseeds_fit_torch_and_repeat(seed: int, names: list[str]) -> None:
    assert 0 <= subseed(seed, *names) < 2**63
    assert subseed(seed, *names) == subseed(seed, *names)
    generator(seed, *names)


def test_streams_differ_by_seed_name_order_and_split() -> None:
    keys = [(0,), (1,), (0, "a"), (0, "a", "b"), (0, "b", "a"), (0, "ab"), (0, "a", ""), (0, "", "a")]
    assert len({subseed(seed, *names) for seed, *names in keys}) == len(keys)


def test_the_numbers_are_those_of_every_machine() -> None:
    # printf '[0, "noise"]' | sha256sum: the first 16 digits, halved
    assert subseed(0, "noise") == 6094347035957852577
    assert generator(0, "noise").device == torch.device("cpu")


def test_a_stream_does_not_depend_on_the_use_of_others() -> None:
    first = torch.randn(3, generator=generator(0, "a"))
    torch.randn(5)
    torch.randn(5, generator=generator(0, "b"))
    assert torch.equal(torch.randn(3, generator=generator(0, "a")), first)
