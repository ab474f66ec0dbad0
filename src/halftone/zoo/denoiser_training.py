"""Train a denoiser on noise prediction with Min-SNR weights."""

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

from halftone.zoo.trainer import Schedule, fit
from halftone.zoo.watch import Watch


@dataclass(frozen=True)
class Training(Schedule):
    """Hyper-parameters of one denoiser training: the loop's, and the loss's.

    The loss of a timestep is weighted by ``min(SNR, snr_gamma) / SNR`` (Min-SNR, arXiv:2303.09556, for noise prediction): nearly
    clean timesteps, which decide little of an image, would otherwise take most of a short training.
    """

    snr_gamma: float = 5.0


def noise_prediction_loss(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    clean: torch.Tensor,
    signal: torch.Tensor,
    gamma: float,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (the Min-SNR weighted loss, the unweighted one) of one batch.

    Args:
        predict: ``(x_t [B, C, H, W], t [B]) -> noise [B, C, H, W]``; runs under bf16 autocast.
        clean: ``[B, C, H, W]``.
        signal: the schedule's ``alphas_cumprod`` ``[T]``, on the device to compute on.
        gamma: the SNR from which on the weight falls.
        generator: gives timesteps and noise, on the CPU so that they do not depend on the device.
    """
    device = signal.device
    t = torch.randint(0, len(signal), (len(clean),), generator=generator).to(device)
    noise = torch.randn(clean.shape, generator=generator).to(device)
    a = signal[t].view(-1, 1, 1, 1)
    noisy = a.sqrt() * clean.to(device) + (1 - a).sqrt() * noise
    with torch.autocast(device.type, dtype=torch.bfloat16), _attention(device):
        predicted = predict(noisy, t)
    error = (predicted.float() - noise).square().mean((1, 2, 3))
    snr = signal[t] / (1 - signal[t])
    return (error * (gamma / snr).clamp(max=1.0)).mean(), error.detach().mean()


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
    signal = pipe.scheduler.alphas_cumprod.to(device)

    def loss(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        clean = data[torch.randint(0, len(data), (training.batch,), generator=generator)]
        return noise_prediction_loss(lambda x, t: pipe.unet(x, t).sample, clean, signal, training.snr_gamma, generator)

    about = {"data": hashlib.sha256(data.contiguous().numpy().data).hexdigest()[:16]}
    facts = fit(pipe.unet, loss, training, work / "checkpoint.pt", device, say, watch=watch, about=about)
    (work / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    return facts
