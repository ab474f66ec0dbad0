"""Train a denoiser to predict noise or velocity, with weights after Min-SNR."""

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch.nn.attention import SDPBackend, sdpa_kernel

from halftone.foundation.errors import ConfigError
from halftone.zoo.trainer import Schedule, fit
from halftone.zoo.watch import Watch

_PREDICTED = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class Training(Schedule):
    """Hyper-parameters of one denoiser training: the loop's, and the loss's.

    ``snr_gamma`` limits what an error of the clean image counts, as a multiple of what it counts in pure noise (see
    ``Diffusion.weights``): nearly clean timesteps, which decide little of an image, would otherwise take most of a short training.
    """

    snr_gamma: float = 5.0


@dataclass(frozen=True)
class Diffusion:
    """The forward process, and what of it a network predicts.

    Attributes:
        signal: ``alphas_cumprod`` ``[T]``, on the device to compute on.
        velocity: the network predicts ``a * noise - s * clean`` (Salimans & Ho 2022, arXiv:2202.00512, section 4), with a
            and s the amplitudes of image and noise; False: the noise.
    """

    signal: torch.Tensor
    velocity: bool

    @classmethod
    def of(cls, scheduler: Any, device: str | torch.device) -> "Diffusion":
        """Return that of a diffusers ``scheduler``.

        Raises:
            ConfigError: its network predicts neither noise nor velocity.
        """
        kind = scheduler.config.prediction_type
        if kind not in _PREDICTED:
            raise ConfigError("scheduler: prediction_type", " or ".join(_PREDICTED), repr(kind))
        return cls(scheduler.alphas_cumprod.to(device), kind == "v_prediction")

    def weights(self, t: torch.Tensor, gamma: float) -> torch.Tensor:
        """Return the loss's weight at each of ``t`` ``[B]``.

        For noise this is Min-SNR (arXiv:2303.09556), ``min(SNR, gamma) / SNR``. For velocity it is
        ``min(SNR + 1, gamma) / (SNR + 1)``, where the paper has ``min(SNR, gamma) / (SNR + 1)``: without the one, nothing
        is learned from timesteps of almost pure noise, in which the caption alone says what the picture will be.
        """
        snr = self.signal[t] / (1 - self.signal[t])
        return (gamma / (snr + 1 if self.velocity else snr)).clamp(max=1.0)


def denoising_loss(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    clean: torch.Tensor,
    diffusion: Diffusion,
    gamma: float,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (the weighted loss, the unweighted one) of one batch.

    Args:
        predict: ``(x_t [B, C, H, W], t [B]) -> noise or velocity [B, C, H, W]``; runs under bf16 autocast.
        clean: ``[B, C, H, W]``.
        gamma: see ``Diffusion.weights``.
        generator: gives timesteps and noise, on the CPU so that they do not depend on the device.
    """
    device = diffusion.signal.device
    t = torch.randint(0, len(diffusion.signal), (len(clean),), generator=generator).to(device)
    noise, clean = torch.randn(clean.shape, generator=generator).to(device), clean.to(device)
    a = diffusion.signal[t].view(-1, 1, 1, 1)
    noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
    wanted = a.sqrt() * noise - (1 - a).sqrt() * clean if diffusion.velocity else noise
    with torch.autocast(device.type, dtype=torch.bfloat16), _attention(device):
        predicted = predict(noisy, t)
    error = (predicted.float() - wanted).square().mean((1, 2, 3))
    return (error * diffusion.weights(t, gamma)).mean(), error.detach().mean()


def _attention(device: torch.device) -> AbstractContextManager[Any]:
    """Return the attention to train with. On few tokens the CPU's fused one takes six times as long backwards as plain products."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def train(
    pipe: DiffusionPipeline,
    data: torch.Tensor,
    training: Training,
    work: Path,
    device: str = "cpu",
    say: Callable[[str], None] = print,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Train ``pipe.unet`` in place on ``data`` ``[N, C, H, W]`` in [-1, 1] and leave it with the averaged weights.

    ``work`` holds ``checkpoint.pt``; where it exists the training goes on from there, with the time already spent counted.
    ``watch`` measures ``pipe.unet``'s averaged weights on the way. Returns the card's facts; see ``fit``, also for the errors.
    """
    diffusion = Diffusion.of(pipe.scheduler, device)

    def loss(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        clean = data[torch.randint(0, len(data), (training.batch,), generator=generator)]
        return denoising_loss(lambda x, t: pipe.unet(x, t).sample, clean, diffusion, training.snr_gamma, generator)

    about = {"data": hashlib.sha256(data.contiguous().numpy().data).hexdigest()[:16]}
    facts = fit(pipe.unet, loss, training, work / "checkpoint.pt", device, say, watch=watch, about=about)
    (work / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    return facts
