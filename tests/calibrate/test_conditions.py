"""Digests of what a pipeline is called with, and lists that are taken in turn."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from halftone.calibrate.conditions import digest, digests, in_turn
from halftone.foundation.errors import ConfigError


def picture(value: int) -> Image.Image:
    return Image.fromarray(np.full((40, 40, 3), value, np.uint8))


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (lambda: {"prompt": ["a", "b"]}, {"prompt": ["ab"]}),
        (lambda: {"image": [picture(1), picture(2)]}, {"image": [picture(1), picture(3)]}),
        (lambda: {"x": torch.arange(5000)}, {"x": torch.arange(5000).index_fill(0, torch.tensor([2500]), 7)}),
        (lambda: {"x": np.zeros((60, 60))}, {"x": np.pad(np.ones((1, 1)), ((30, 29), (30, 29)))}),
        (lambda: {"x": torch.ones(2, dtype=torch.bfloat16)}, {"x": torch.ones(2)}),
        (lambda: {"scale": 1.0, "name": None}, {"scale": 1.5, "name": None}),
        (lambda: {"inner": {"a": 1}}, {"inner": {"a": 2}}),
    ],
    ids=["texts", "pictures", "large tensors", "large arrays", "dtypes", "numbers", "mappings"],
)
def test_equal_contents_have_equal_digests_and_others_not(make, other) -> None:  # type: ignore[no-untyped-def]
    assert digest(make()) == digest(make())
    if "bfloat16" not in str(make()):
        assert digest(make()) != digest(other)


def test_the_order_of_names_does_not_matter() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


@given(st.integers(1, 40), st.integers(1, 100), st.integers(0, 5))
def test_lists_are_taken_evenly_in_an_order_of_the_seed(length: int, count: int, seed: int) -> None:
    texts, numbers = [f"text {n}" for n in range(length)], list(range(length))
    found = in_turn({"prompt": texts, "label": numbers}, count, seed)
    assert found["prompt"] == [f"text {n}" for n in found["label"]], "values of one trajectory stay together"
    taken = Counter(found["label"])
    assert max(taken.values()) - min(taken[n] for n in numbers) <= 1
    assert found == in_turn({"prompt": texts, "label": numbers}, count, seed)
    assert found["label"] == in_turn({"label": numbers}, count + 7, seed)["label"][:count], "more of them begin alike"


@pytest.mark.parametrize("values", ["red heart", b"red", [], 7])
def test_what_is_no_list_is_refused(values: object) -> None:
    with pytest.raises(ConfigError, match="each: prompt: expected a list of values"):
        in_turn({"prompt": values}, 2, 0)  # type: ignore[dict-item]


def test_few_of_a_long_list_are_not_its_head() -> None:
    some = in_turn({"prompt": list(range(1000))}, 20, 0)["prompt"]
    assert np.mean(some) == pytest.approx(500, abs=200) and some != sorted(some)
    assert some != in_turn({"prompt": list(range(1000))}, 20, 1)["prompt"]


def test_digests_of_tensors() -> None:
    one, other = (digests({"x": [torch.full((2,), value, dtype=torch.bfloat16)]})["x"] for value in (1.0, 2.0))
    assert one != other and one == digests({"x": [torch.ones(2)]})["x"]


def test_digests_of_each_argument() -> None:
    found = digests({"prompt": ["a", "b"], "image": [picture(1)]})
    assert found["prompt"].startswith("2 values, ") and found["image"] == digests({"image": [picture(1)]})["image"]
