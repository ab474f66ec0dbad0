"""A tiny pipeline that is the same each time it is made."""

from collections.abc import Callable

import pytest
from diffusers import DDIMPipeline
from tests.tiny import pipeline, randomised, tiny_unet


@pytest.fixture(scope="session")
def make_pipe() -> Callable[[], DDIMPipeline]:
    """Return a maker of fresh pipelines around the same float U-Net."""
    return lambda: pipeline(randomised(tiny_unet(), seed=7))


@pytest.fixture(scope="session")
def shrunk() -> Callable[..., list[str]]:
    """Return the overrides that make a recipe take a second."""

    def overrides(recipe, iterations: int = 2) -> list[str]:
        changes = ["calibration.samples=8"]
        for name, step in recipe.steps.items():
            room, method = step["method"].split("/")
            if room == "reconstruct":
                changes += [
                    f"steps.{name}.iterations={iterations}",
                    f"steps.{name}.batch=4",
                    f"steps.{name}.walk_batch=8",
                ]
            if method == "gptq":
                changes += [f"steps.{name}.walk_batch=8"]
            if method == "static":
                changes += [f"steps.{name}.samples=8", f"steps.{name}.batch=8"]
        return changes

    return overrides
