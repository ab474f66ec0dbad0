"""Strict construction: what is accepted, and what every mistake is told."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from halftone.foundation.build import UNSAID_BY_DEFAULT, build, override, plain
from halftone.foundation.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    bits: int
    rate: float = 0.5


@dataclass(frozen=True)
class Other:
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = Inner(8)
    maybe: Inner | None = None
    either: Inner | Other | None = None
    mode: Literal["mse", "max", 3] = "mse"
    sizes: tuple[int, ...] = ()
    pair: tuple[int, str] = (0, "")
    parts: dict[str, Inner] = field(default_factory=dict)
    by_bits: dict[int, float] = field(default_factory=dict)
    steps: tuple[Inner, ...] = ()
    limit: float | Literal["auto"] | None = None
    mixed: float | str = ""
    flag: bool = False
    where: Path | None = None
    words: list[str] = field(default_factory=list)
    anything: Any = None
    derived: int = field(default=7, init=False)


def refusal(data: Any, where: str = "recipe") -> str:
    with pytest.raises(ConfigError) as caught:
        build(Outer, data, where)
    return str(caught.value)


def test_everything_is_built() -> None:
    text = """
        name: x
        inner: {bits: 4, rate: 1e-3}
        maybe: {bits: 2}
        either: {ranks: [16, 32]}
        mode: 3
        sizes: [1, 2]
        pair: [3, three]
        parts: {q: {bits: 6, rate: 1}}
        by_bits: {4: 1.5}
        steps: [{bits: 1}, {bits: 2}]
        limit: auto
        mixed: 2e5
        flag: true
        where: a/b
        words: [one]
        anything: {deep: [1]}
    """
    assert build(Outer, yaml.safe_load(text), "recipe") == Outer(
        name="x",
        inner=Inner(4, 0.001),
        maybe=Inner(2),
        either=Other((16, 32)),
        mode=3,
        sizes=(1, 2),
        pair=(3, "three"),
        parts={"q": Inner(6, 1.0)},
        by_bits={4: 1.5},
        steps=(Inner(1), Inner(2)),
        limit="auto",
        mixed=2e5,
        flag=True,
        where=Path("a/b"),
        words=["one"],
        anything={"deep": [1]},
    )


def test_an_int_becomes_a_float_and_a_built_part_is_taken_as_it_is() -> None:
    built = build(Outer, {"name": "x", "inner": Inner(3), "limit": 2}, "")
    assert built.inner == Inner(3)
    assert isinstance(built.limit, float)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"nam": "x"}, ["recipe.nam", "Did you mean 'name'?"]),
        ({}, ["recipe", "'name'"]),
        ([], ["recipe", "a mapping (Outer)", "[] (list)"]),
        ({"name": 3}, ["recipe.name", "expected str", "3 (int)"]),
        ({"name": None}, ["recipe.name", "expected str", "null"]),
        ({"name": "x", "inner": {"bits": 4.0}}, ["recipe.inner.bits", "expected int", "4.0 (float)"]),
        ({"name": "x", "inner": {"bits": True}}, ["recipe.inner.bits", "expected int", "True (bool)"]),
        ({"name": "x", "inner": {"bits": 4, "rate": True}}, ["recipe.inner.rate", "expected float"]),
        ({"name": "x", "inner": {"bits": 4, "rate": "fast"}}, ["recipe.inner.rate", "expected float", "'fast'"]),
        ({"name": "x", "inner": {"bits": 4, "rate": "0.5"}}, ["recipe.inner.rate", "expected float"]),
        ({"name": "x", "inner": None}, ["recipe.inner", "a mapping (Inner)"]),
        ({"name": "x", "maybe": {"bit": 4}}, ["recipe.maybe.bit", "Did you mean 'bits'?"]),
        ({"name": "x", "maybe": 4}, ["recipe.maybe", "a mapping (Inner) or null"]),
        ({"name": "x", "either": {"rank": [1]}}, ["recipe.either", "(Inner) or a mapping (Other)"]),
        ({"name": "x", "mode": "mxa"}, ["recipe.mode", "'mse', 'max', 3", "Did you mean 'max'?"]),
        ({"name": "x", "mode": 3.0}, ["recipe.mode", "one of"]),
        ({"name": "x", "sizes": [1, "2"]}, ["recipe.sizes.1", "expected int"]),
        ({"name": "x", "sizes": 1}, ["recipe.sizes", "a list of int"]),
        ({"name": "x", "sizes": "12"}, ["recipe.sizes", "a list of int"]),
        ({"name": "x", "pair": [1]}, ["recipe.pair", "2 entries"]),
        ({"name": "x", "parts": {"q": {}}}, ["recipe.parts.q", "'bits'"]),
        ({"name": "x", "parts": {4: {"bits": 1}}}, ["recipe.parts.4 (the key itself)", "expected str"]),
        ({"name": "x", "by_bits": {"four": 1.0}}, ["recipe.by_bits.four", "expected int"]),
        ({"name": "x", "steps": [{"bits": 1}, {"bits": "1"}]}, ["recipe.steps.1.bits", "expected int"]),
        ({"name": "x", "limit": "atuo"}, ["recipe.limit", "float or one of 'auto' or null"]),
        ({"name": "x", "flag": 1}, ["recipe.flag", "expected bool"]),
        ({"name": "x", "derived": 1}, ["recipe.derived", "a known key"]),
    ],
)
def test_mistakes_name_the_place_and_the_remedy(data: Any, words: list[str]) -> None:
    message = refusal(data)
    assert [word for word in words if word not in message] == [], message


def test_long_values_are_cut() -> None:
    assert len(refusal({"name": list(range(1000))})) < 150


@dataclass(frozen=True)
class Picky:
    bits: int

    def __post_init__(self) -> None:
        if self.bits < 1:
            raise ValueError("bits must be positive")


def test_a_value_that_the_class_refuses_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="recipe.x: bits must be positive"):
        build(Picky, {"bits": 0}, "recipe.x")


def test_an_unsupported_annotation_is_the_programmers_error() -> None:
    @dataclass(frozen=True)
    class Strange:
        x: "np.ndarray[Any, Any]"

    with pytest.raises(TypeError, match="does not understand"):
        build(Strange, {"x": 1}, "s")


floats = st.floats(allow_nan=False)
inners = st.builds(Inner, st.integers(), floats)
outers = st.builds(
    Outer,
    name=st.text(),
    inner=inners,
    maybe=st.none() | inners,
    either=st.none() | inners | st.builds(Other, st.lists(st.integers()).map(tuple)),
    sizes=st.lists(st.integers()).map(tuple),
    pair=st.tuples(st.integers(), st.text()),
    parts=st.dictionaries(st.text(), inners),
    by_bits=st.dictionaries(st.integers(), floats),
    steps=st.lists(inners).map(tuple),
    limit=st.none() | floats | st.just("auto"),
    flag=st.booleans(),
    where=st.none() | st.just(Path("a/b")),
    words=st.lists(st.text()),
)


@given(outers)
def test_plain_and_build_are_inverse_through_json(value: Outer) -> None:
    text = json.dumps(plain(value), allow_nan=False)
    assert build(Outer, json.loads(text), "") == value


def test_plain_makes_numpy_scalars_python_ones_and_names_what_json_cannot_hold() -> None:
    assert plain({"a": np.float32(0.5), 2: np.int64(3), "n": math.nan, "i": -math.inf, "p": Path("x")}) == {
        "a": 0.5,
        "2": 3,
        "n": ".nan",
        "i": "-.inf",
        "p": "x",
    }


def test_plain_refuses_what_is_not_data() -> None:
    with pytest.raises(TypeError, match="Tensor is not plain data"):
        plain({"weight": torch.zeros(3)})


DATA = {
    "policy": {"weights": "int8", "down.0": {"bits": 8}},
    "steps": [{"method": "a", "lr": 0.1}, {"method": "b"}],
    4: 0,
}


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("policy.weights=int4", ("policy", "weights"), "int4"),
        ("steps.0.lr=2", ("steps", 0, "lr"), 2),
        ("steps.-1.method=[x, 1]", ("steps", 1, "method"), ["x", 1]),
        ("steps.1={method: c}", ("steps", 1), {"method": "c"}),
        ("policy.down.0.bits=4", ("policy", "down.0", "bits"), 4),
        ("policy.weights=", ("policy", "weights"), None),
        ("policy.weights=a=b", ("policy", "weights"), "a=b"),
        ("4=1", (4,), 1),
    ],
)
def test_override_sets_one_place_of_a_copy(assignment: str, path: tuple[str | int, ...], value: Any) -> None:
    before = json.dumps(DATA)
    changed: Any = override(DATA, [assignment])
    for key in path:
        changed = changed[key]
    assert changed == value
    assert json.dumps(DATA) == before


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("policy.weigths=int4", ["policy.weigths", "Did you mean 'weights'?"]),
        ("polcy.weights=int4", ["'polcy'", "Did you mean 'policy'?"]),
        ("steps.2.lr=1", ["2 entries of 'steps'", "'2'"]),
        ("steps.first.lr=1", ["2 entries of 'steps'", "'first'"]),
        ("policy.weights.bits=1", ["'policy.weights' to be a mapping or a list"]),
        ("steps.1.lr=1", ["a known key", "'steps.1.lr'"]),
        ("steps", ["path.to.key=value"]),
        ("=3", ["no path"]),
        ("policy.weights=[1", ["a YAML value"]),
    ],
)
def test_override_refuses_what_leads_nowhere(assignment: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        override(DATA, [assignment])
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_override_can_add_a_key_at_the_end_of_a_path_only() -> None:
    assert override(DATA, ["steps.1.lr=1"], new_keys=True)["steps"][1] == {"method": "b", "lr": 1}
    with pytest.raises(ConfigError):
        override(DATA, ["stpes.1.lr=1"], new_keys=True)


def test_overrides_apply_in_order() -> None:
    assert override(DATA, ["steps.1={method: c}", "steps.1.method=d"])["steps"][1] == {"method": "d"}


@dataclass(frozen=True)
class Grown:
    """Has a field that came later."""

    first: int = 1
    later: int = field(default=2, metadata=UNSAID_BY_DEFAULT)


def test_a_field_that_came_later_is_written_only_where_it_says_something() -> None:
    assert plain(Grown()) == {"first": 1}
    assert plain(Grown(later=3)) == {"first": 1, "later": 3}
    assert build(Grown, plain(Grown())) == Grown()
    assert build(Grown, plain(Grown(later=3))) == Grown(later=3)
