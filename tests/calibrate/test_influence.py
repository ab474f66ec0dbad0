"""Influence: of a sampler whose arithmetic can be done by hand, exactly what that arithmetic says."""

from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, PNDMScheduler
from diffusers.models.unets.unet_2d import UNet2DOutput

from halftone.calibrate.influence import influence
from halftone.calibrate.trajectory import Trajectory
from halftone.foundation.errors import CalibrationError


def fixed(pipe: DDIMPipeline) -> DDIMPipeline:
    """A pipeline whose denoiser says the same noise whatever it is given: the image is linear in what each call says."""
    said = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def forward(sample: torch.Tensor, timestep: Any, **kwargs: Any) -> UNet2DOutput:
        return UNet2DOutput(sample=said.expand_as(sample).clone())

    pipe.unet.forward = forward
    pipe.scheduler = DDIMScheduler(clip_sample=False)
    return pipe


def by_hand(scheduler: DDIMScheduler, steps: int) -> torch.Tensor:
    """Return the square of what one more unit of noise in a call adds to the image, by DDIM's equation 12."""
    scheduler.set_timesteps(steps)
    kept = [float(scheduler.alphas_cumprod[t]) for t in scheduler.timesteps] + [float(scheduler.final_alpha_cumprod)]
    added = []
    for i in range(steps):
        now, then = kept[i], kept[i + 1]
        step = (1 - then) ** 0.5 - (then / now) ** 0.5 * (1 - now) ** 0.5
        added.append((step * (kept[-1] / then) ** 0.5) ** 2)
    squares = torch.tensor(added)
    return squares / squares.mean()


def test_it_is_what_the_samplers_arithmetic_says(pipe: DDIMPipeline) -> None:
    pipe = fixed(pipe)
    found = influence(pipe, 64, 6, seed=0)
    wanted = by_hand(pipe.scheduler, 6)
    assert found.mean() == pytest.approx(1)
    # The noise of a probe is random: its power in 64 pixels is known to some ten per cent, the median of 64 images to a few.
    assert torch.allclose(found.log(), wanted.log(), atol=0.1)


def test_between_probes_it_is_interpolated(pipe: DDIMPipeline) -> None:
    pipe = fixed(pipe)
    every, some = (influence(pipe, 64, 9, seed=0, probes=probes) for probes in (9, 5))
    assert len(some) == 9
    middle = (some[0] * some[2]).sqrt()
    assert float(some[1] / middle) == pytest.approx(1, rel=1e-4)
    assert torch.allclose(some[::2] / some[0], every[::2] / every[0], rtol=0.3)


def test_the_pipeline_is_left_alone_and_seeds_decide(pipe: DDIMPipeline) -> None:
    first = influence(pipe, 2, 3, seed=0)
    assert "forward" not in vars(pipe.unet)
    assert "step" not in vars(pipe.scheduler)
    assert torch.equal(first, influence(pipe, 2, 3, seed=0))
    assert not torch.equal(first, influence(pipe, 2, 3, seed=1))
    own = fixed(pipe).unet.forward
    influence(pipe, 2, 3, seed=0)
    assert pipe.unet.forward is own  # as accelerate's hooks leave one of their own


def test_a_sampler_that_calls_more_often_than_it_steps(pipe: DDIMPipeline) -> None:
    pipe.scheduler = PNDMScheduler(skip_prk_steps=True)
    assert len(influence(pipe, 2, 4, seed=0)) == 5


def test_a_denoiser_that_nobody_listens_to_is_an_error(pipe: DDIMPipeline) -> None:
    pipe.unet.conv_out.weight.data.zero_()
    pipe.unet.conv_out.bias.data.zero_()
    with pytest.raises(CalibrationError, match="influence"):
        influence(pipe, 2, 3, seed=0)


def test_it_weighs_samples_by_their_calls_and_survives_saving(tmp_path: Any) -> None:
    calls = torch.tensor([0, 0, 1, 2])
    data = Trajectory((torch.randn(4, 3),), {}, calls, {}, influence=torch.tensor([2.0, 0.7, 0.3]))
    data.save(tmp_path / "t.safetensors")
    again = Trajectory.load(tmp_path / "t.safetensors")
    assert again.weights is not None
    assert torch.equal(again.weights, torch.tensor([2.0, 2.0, 0.7, 0.3]))
    assert Trajectory((torch.randn(4, 3),), {}, calls, {}).weights is None
