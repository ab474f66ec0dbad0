"""The whole judgement, on networks of a few thousand parameters."""

import json
import math
from collections.abc import Callable

import pytest
from diffusers import DDIMPipeline

from halftone.evaluate.compare import evaluate, judge, pair
from halftone.evaluate.sample import sample
from halftone.foundation.errors import ConfigError


def test_a_model_equals_itself(pipe: DDIMPipeline) -> None:
    found = evaluate(pipe, pipe, samples=4, steps=2, seed=0, batch=2, trail_samples=2)
    assert found.paired is not None and found.trail is not None
    assert found.paired.psnr.value == math.inf
    assert found.paired.latent_mse.value == 0
    assert found.paired.ssim is not None and found.paired.ssim.value == pytest.approx(1)
    assert found.trail.eps_mse == (0, 0)
    assert found.distribution is None  # no feature network takes 16x16
    json.dumps(found.plain(), allow_nan=False)


def test_a_changed_model_differs_more_along_the_way(pipe: DDIMPipeline, other: DDIMPipeline) -> None:
    found = evaluate(other, pipe, samples=4, steps=3, seed=0, batch=4, trail_samples=3)
    assert found.paired is not None and found.trail is not None
    assert 0 < found.paired.latent_mse.low <= found.paired.latent_mse.value <= found.paired.latent_mse.high
    assert found.paired.psnr.low <= found.paired.psnr.value <= found.paired.psnr.high < math.inf
    assert found.paired.mean_psnr >= found.paired.psnr.value - 1e-9
    assert found.trail.samples == 3 and len(found.trail.eps_mse) == 3
    assert found.trail.x_mse[0] == 0 < found.trail.x_mse[1]  # equal noise first


def test_float_samples_are_reused(pipe: DDIMPipeline, other: DDIMPipeline) -> None:
    drawn = sample(pipe, 4, 2, seed=0, batch=4)
    found = evaluate(other, drawn, samples=4, steps=2, seed=0, batch=4)
    assert found.paired == evaluate(other, pipe, samples=4, steps=2, seed=0, batch=4).paired
    assert judge(drawn).paired is None


def test_samples_that_are_not_pairs_are_refused(pipe: DDIMPipeline) -> None:
    drawn = sample(pipe, 2, 2, seed=1, batch=2)
    with pytest.raises(ConfigError, match="seed"):
        evaluate(pipe, drawn, samples=2, steps=2, seed=0, batch=2)
    with pytest.raises(ConfigError):
        pair(sample(pipe, 2, 2, seed=0, batch=2), drawn)
    with pytest.raises(ConfigError, match="trail_samples"):
        evaluate(pipe, drawn, samples=2, steps=2, seed=1, trail_samples=1)


def test_the_distance_is_named_after_its_features(build: Callable[..., DDIMPipeline]) -> None:
    found = evaluate(build(0, size=32), samples=8, steps=1, seed=0, batch=8)
    assert found.distribution is not None
    assert found.distribution.name == "FD(fashion-classifier)"
    assert found.distribution.value > found.distribution.floor.mean > 0
    assert evaluate(build(0, size=32), samples=2, steps=1, seed=0, batch=2, network="none").distribution is None
    with pytest.raises(ConfigError, match="Did you mean"):
        evaluate(build(0, size=32), samples=1, steps=1, batch=1, network="fashion-classifer")
