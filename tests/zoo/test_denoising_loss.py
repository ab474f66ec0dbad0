"""What the loss of a denoiser counts: errors of the clean image, by timestep."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from halftone.foundation.errors import ConfigError
from halftone.zoo import emoji_sd, fashion_unet
from halftone.zoo.denoiser_training import Diffusion, denoising_loss

SIGNAL = PNDMScheduler.from_config(emoji_sd.SCHEDULE).alphas_cumprod


def _seen(velocity, gamma, error, seed=0, batch=3):
    """The loss where the network's idea of the clean image is off by ``error`` everywhere; timesteps and what it saw."""
    clean = torch.randn((batch, 2, 4, 4), generator=torch.Generator().manual_seed(99))
    told = []

    def predict(noisy, t):
        a = SIGNAL[t].double().view(-1, 1, 1, 1)
        guess = clean.double() + error
        noise = (noisy.double() - a.sqrt() * guess) / (1 - a).sqrt()
        told.append((noisy, t))
        return a.sqrt() * noise - (1 - a).sqrt() * guess if velocity else noise

    loss = denoising_loss(predict, clean, Diffusion(SIGNAL, velocity), gamma, torch.Generator().manual_seed(seed))
    return loss, told[0]


@settings(max_examples=40)
@given(
    velocity=st.booleans(),
    gamma=st.floats(1.0, 20.0),
    error=st.floats(-2.0, 2.0).filter(lambda e: abs(e) > 0.1),
    seed=st.integers(0, 2**16),
)
def test_an_error_of_the_clean_image_counts_as_much_as_its_timestep_is_worth(velocity, gamma, error, seed):
    (weighted, plain), (_, t) = _seen(velocity, gamma, error, seed)
    snr = (SIGNAL / (1 - SIGNAL))[t].double()
    worth = snr + 1 if velocity else snr
    torch.testing.assert_close(
        weighted.double(), (worth.clamp(max=gamma) * error**2).mean(), rtol=2e-3, atol=1e-6, check_dtype=False
    )
    torch.testing.assert_close(plain.double(), (worth * error**2).mean(), rtol=2e-3, atol=1e-6, check_dtype=False)


def test_predicting_noise_nothing_is_learned_where_predicting_velocity_much_is():
    last = torch.tensor([len(SIGNAL) - 1])
    snr = (SIGNAL / (1 - SIGNAL))[last].item()
    assert Diffusion(SIGNAL, velocity=False).weights(last, 5.0).item() * snr < 1e-3
    assert Diffusion(SIGNAL, velocity=True).weights(last, 5.0).item() * (snr + 1) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("velocity", [False, True])
def test_both_see_the_same_noisy_images(velocity):
    _, (noisy, t) = _seen(velocity, 5.0, 0.5, seed=7)
    _, (other, when) = _seen(not velocity, 5.0, 0.5, seed=7)
    assert torch.equal(noisy, other) and torch.equal(t, when)


def test_the_scheduler_says_what_is_predicted():
    assert Diffusion.of(PNDMScheduler.from_config(emoji_sd.SCHEDULE), "cpu").velocity
    with pytest.raises(ConfigError, match="epsilon or v_prediction, got 'sample'"):
        Diffusion.of(DDIMScheduler(prediction_type="sample"), "cpu")
    fashion = Diffusion.of(DDIMScheduler(**fashion_unet.SCHEDULE), "cpu")
    assert not fashion.velocity
    torch.testing.assert_close(fashion.signal, DDIMScheduler(**fashion_unet.SCHEDULE).alphas_cumprod)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers' schedulers
@pytest.mark.parametrize(
    "kind",
    [PNDMScheduler, DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler],
    ids=lambda kind: kind.__name__,
)
def test_under_every_sampler_one_who_knows_the_velocity_draws_the_image(kind):
    own = PNDMScheduler.from_config(emoji_sd.SCHEDULE)
    sampler = kind.from_config(own.config)
    sampler.set_timesteps(20)
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn((1, 4, 8, 8), generator=generator)
    x = torch.randn(wanted.shape, generator=generator) * sampler.init_noise_sigma
    for t in sampler.timesteps:
        seen = sampler.scale_model_input(x, t)
        a = own.alphas_cumprod[int(t)]
        noise = (seen - a.sqrt() * wanted) / (1 - a).sqrt()
        x = sampler.step(a.sqrt() * noise - (1 - a).sqrt() * wanted, t, x).prev_sample
    assert (x - wanted).abs().mean() < 0.1
