"""The examples in the docstrings of this room run."""

import doctest
import importlib
import pkgutil

import pytest

import halftone.foundation

MODULES = [module.name for module in pkgutil.iter_modules(halftone.foundation.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"halftone.foundation.{name}")).failed == 0
