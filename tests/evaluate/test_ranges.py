"""Activation ranges along the sampling."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline

from halftone.evaluate.ranges import Ranges, ranges_over_time
from halftone.evaluate.sample import trajectories
from halftone.foundation.errors import CalibrationError, ConfigError
from halftone.models.surgery import replace_layers
from halftone.quant.bimodality import bimodality

SHORTCUT = "up_blocks.0.resnets.0.conv_shortcut"


@pytest.fixture(scope="module")
def found(pipe: DDIMPipeline) -> Ranges:
    return ranges_over_time(pipe, 3, 4, seed=0, batch=2)


def test_the_first_layer_sees_what_the_denoiser_is_given(pipe: DDIMPipeline, found: Ranges) -> None:
    calls = trajectories(pipe, 3, 4, seed=0, batch=3)
    assert found.timesteps == tuple(calls.timesteps)
    band = found.layers["conv_in"]
    inputs = calls.inputs.reshape(4, -1)
    assert band.minimum == pytest.approx(inputs.min(1), abs=1e-4)
    assert band.maximum == pytest.approx(inputs.max(1), abs=1e-4)
    assert all(np.diff([band.minimum, band.low, band.high, band.maximum], axis=0).flatten() >= 0)


def test_every_layer_has_a_band(pipe: DDIMPipeline, found: Ranges) -> None:
    layers = {p for p, m in pipe.unet.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
    assert set(found.layers) == layers
    assert all(len(band.high) == 4 for band in found.layers.values())


def test_parts_make_up_the_whole(pipe: DDIMPipeline, found: Ranges) -> None:
    layer = found.concatenations[SHORTCUT]
    assert sum(layer.channels) == pipe.unet.get_submodule(SHORTCUT).in_channels
    assert np.min([part.minimum for part in layer.parts], 0) == pytest.approx(found.layers[SHORTCUT].minimum)
    assert np.max([part.maximum for part in layer.parts], 0) == pytest.approx(found.layers[SHORTCUT].maximum)
    extremes = torch.tensor([[min(part.minimum), max(part.maximum)] for part in layer.parts])
    weight = pipe.unet.get_submodule(SHORTCUT).weight
    assert layer.bimodality == pytest.approx(bimodality(extremes, weight, layer.channels), abs=1e-3)


def test_the_batch_size_does_not_matter_to_extremes(pipe: DDIMPipeline, found: Ranges) -> None:
    again = ranges_over_time(pipe, 3, 4, seed=0, batch=3)
    for path, band in found.layers.items():
        assert band.minimum == pytest.approx(again.layers[path].minimum, rel=1e-3, abs=1e-4)


def test_the_record_is_json_and_leaves_no_hooks(pipe: DDIMPipeline, found: Ranges) -> None:
    json.dumps(found.plain(), allow_nan=False)
    assert not any(module._forward_pre_hooks for module in pipe.unet.modules())


def test_what_cannot_be_measured_is_refused(build: Callable[..., DDIMPipeline]) -> None:
    broken = build(1)
    with torch.no_grad():
        broken.unet.conv_in.weight.fill_(torch.nan)
    with pytest.raises(CalibrationError, match="NaN"):
        ranges_over_time(broken, 1, 1, seed=0, batch=1)
    assert not any(module._forward_pre_hooks for module in broken.unet.modules())
    quantized = build(2)
    replace_layers(quantized.unet, ["conv_in"])
    with pytest.raises(ConfigError, match="float denoiser"):
        ranges_over_time(quantized, 1, 1, seed=0, batch=1)


def test_equal_parts_gain_nothing_and_a_wide_one_does() -> None:
    weight = torch.ones(4, 6, 1, 1)
    assert bimodality(torch.tensor([[-1.0, 1], [-1, 1]]), weight, (3, 3)) == pytest.approx(0)
    assert bimodality(torch.tensor([[-10.0, 10], [-1, 1]]), weight, (3, 3)) == pytest.approx(2.967, abs=1e-2)
    assert bimodality(torch.zeros(2, 2), weight, (3, 3)) == 0
