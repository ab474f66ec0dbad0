"""What every method says about itself hangs together: each word that one needs, or comes before, is given by another."""

import dataclasses

import pytest

from halftone.foundation.registry import find
from halftone.methods.contract import AbstractMethod
from halftone.recipes.rooms import methods_by_room

METHODS = {
    f"{room}/{name}": find(f"halftone.methods.{room}", name)
    for room, inside in methods_by_room().items()
    for name in inside
}
GIVEN = {word for method in METHODS.values() for word in method.gives}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_method_keeps_its_contract(method: type[AbstractMethod]) -> None:
    assert issubclass(method, AbstractMethod)
    assert dataclasses.is_dataclass(method)
    assert method(), "every field has a default, so that a recipe may name the method alone"
    for words in (method.needs, method.gives, method.before):
        assert isinstance(words, tuple), "one word in parentheses needs a comma"
    assert set(method.needs) | set(method.before) <= GIVEN
    assert not set(method.needs) & set(method.before)
    fields = {field.name for field in dataclasses.fields(method)}
    assert not fields & {"needs", "gives", "before"}, "class variables, or a recipe could change them"


def test_there_are_methods() -> None:
    assert {"weight_scales", "input_scales"} <= GIVEN
    assert len(METHODS) > 4


def test_every_method_says_what_it_will_take() -> None:
    # Or `halftone inspect --plan` could say nothing of a recipe that comes with Halftone.
    assert [name for name, method in METHODS.items() if method.effort is AbstractMethod.effort] == []
