"""Sampling: noise that belongs to the sample, and pipelines left as they were."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
)

from halftone.evaluate.sample import sample, trajectories
from halftone.foundation.errors import CalibrationError, ConfigError
from halftone.models.denoiser import denoiser

Build = Callable[..., DDIMPipeline]


def test_a_sample_depends_on_seed_and_index_only(pipe: DDIMPipeline) -> None:
    whole = sample(pipe, 5, 2, seed=3, batch=5)
    parts = sample(pipe, 5, 2, seed=3, batch=2)
    np.testing.assert_allclose(parts.latents, whole.latents, atol=1e-5)
    np.testing.assert_allclose(sample(pipe, 2, 2, seed=3, batch=4).images, whole.images[:2], atol=1e-5)
    assert np.abs(sample(pipe, 5, 2, seed=4, batch=5).latents - whole.latents).max() > 0.1
    assert whole.images.shape == whole.latents.shape == (5, 1, 16, 16)
    assert whole.images.dtype == np.float32
    assert 0 <= whole.images.min() <= whole.images.max() <= 1


def test_fresh_noise_at_each_step_is_the_samples_own_too(pipe: DDIMPipeline) -> None:
    whole, parts = (sample(pipe, 4, 3, 0, batch, eta=1.0) for batch in (4, 3))
    np.testing.assert_allclose(parts.latents, whole.latents, atol=1e-5)
    assert whole.protocol.eta == 1.0
    assert not whole.protocol.matches(sample(pipe, 4, 3, 0, 4).protocol)


def test_the_images_are_the_clamped_latents(build: Build) -> None:
    pipe = build(1)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    drawn = sample(pipe, 2, 2, 0, 2)
    assert np.abs(drawn.latents).max() > 1  # not clamped
    np.testing.assert_allclose(drawn.images, np.clip(drawn.latents / 2 + 0.5, 0, 1), atol=1e-6)


def test_the_pipeline_is_left_as_it_was(pipe: DDIMPipeline) -> None:
    pipe.set_progress_bar_config(desc="mine")
    sample(pipe, 1, 2, 0, 1)
    trajectories(pipe, 1, 2, 0, 1)
    assert pipe._progress_bar_config == {"desc": "mine"}
    assert "step" not in vars(pipe.scheduler)
    assert not pipe.unet._forward_hooks


def test_a_wrapped_scheduler_keeps_its_wrapper(build: Build) -> None:
    pipe, calls = build(0), []
    inner = pipe.scheduler.step

    def step(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return inner(*args, **kwargs)

    pipe.scheduler.step = step
    sample(pipe, 1, 2, 0, 1)
    assert len(calls) == 2
    assert pipe.scheduler.step is step


def test_an_error_restores_the_pipeline(build: Build) -> None:
    pipe = build(0)
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises(CalibrationError, match="NaN"):
        sample(pipe, 1, 2, 0, 1)
    assert "step" not in vars(pipe.scheduler)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers 0.42 with NumPy 2
@pytest.mark.parametrize("scheduler", [DDPMScheduler, DPMSolverMultistepScheduler])
def test_other_samplers_serve(build: Build, scheduler: type) -> None:
    pipe = build(0)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    drawn = sample(pipe, 2, 3, 0, 1)
    assert drawn.protocol.scheduler == scheduler.__name__


def test_trajectories_are_the_calls_of_the_sampling(pipe: DDIMPipeline) -> None:
    calls = trajectories(pipe, 3, 4, seed=0, batch=2)
    assert calls.inputs.shape == calls.outputs.shape == (4, 3, 1, 16, 16)
    assert calls.timesteps.tolist() == [750, 500, 250, 0]
    with torch.no_grad():
        output = pipe.unet(torch.from_numpy(calls.inputs[1]), 500).sample
    np.testing.assert_allclose(calls.outputs[1], output.numpy(), atol=1e-5)
    # The last step leads from the last recorded call to the final latent.
    step = pipe.scheduler.step(torch.from_numpy(calls.outputs[-1]), 0, torch.from_numpy(calls.inputs[-1]))
    np.testing.assert_allclose(step.prev_sample.numpy(), sample(pipe, 3, 4, 0, 2).latents, atol=1e-5)


def _dit() -> DiTPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            sample_size=8,
            num_embeds_ada_norm=1000,
            norm_num_groups=1,
        )
        vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4, sample_size=8)
    return DiTPipeline(transformer.eval(), vae.eval(), DDIMScheduler())


def test_a_guided_latent_transformer_serves() -> None:
    pipe = _dit()
    labels = {"class_labels": [1, 2, 3]}
    drawn = sample(pipe, 3, 2, 0, batch=2, each=labels)
    assert drawn.latents.shape == (3, 4, 8, 8)
    assert drawn.images.shape == (3, 3, 8, 8)
    assert drawn.protocol.eta is None
    calls = trajectories(pipe, 3, 2, 0, batch=2, each=labels)
    assert calls.inputs.shape == (2, 3, 4, 8, 8)
    assert calls.outputs.shape == (2, 3, 2, 8, 8, 8)  # conditional and unconditional, mean and variance
    others = sample(pipe, 3, 2, 0, 1, class_labels=5)
    assert others.latents.shape == (3, 4, 8, 8)
    assert drawn.protocol.arguments and not others.protocol.matches(drawn.protocol)


def test_wrong_input_is_named(pipe: DDIMPipeline) -> None:
    with pytest.raises(ConfigError, match="3 values"):
        sample(pipe, 3, 2, 0, 1, each={"class_labels": [1]})
    with pytest.raises(ConfigError):
        sample(pipe, 0, 2, 0, 1)
    with pytest.raises(ConfigError):
        denoiser(type("Nothing", (), {"components": {}})())
