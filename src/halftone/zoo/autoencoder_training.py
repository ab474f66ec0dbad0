"""Train an ``AutoencoderKL``, and bring its latents to zero mean and unit variance in every channel."""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from torch import nn

from halftone.zoo.squeezenet import SqueezeNet
from halftone.zoo.trainer import Loss

# Weights of the terms, beside 1 for the mean absolute error of pixels in [-1, 1]. The KL divergence is a mean over latent
# numbers; this much of it keeps the latents smooth without costing visible detail.
_SQUARED = 1.0
_KL = 3e-4
_PERCEPTUAL = 0.1
_PERCEPTUAL_DEPTH = 4  # fire4: outlines and textures; deeper layers see little in 64 pixels


def autoencoder_loss(
    vae: AutoencoderKL,
    draw: Callable[[torch.Generator], torch.Tensor],
    device: str = "cpu",
    judge: SqueezeNet | None = None,
) -> Loss:
    """Return the loss: absolute and squared pixel error, a little KL, and the distance of ``judge``'s features.

    Args:
        draw: gives a batch ``[B, 3, S, S]`` in [-1, 1].
        judge: None leaves the perceptual term out.

    The number shown is the mean squared pixel error.
    """
    if judge is not None:
        judge.to(device)

    def loss(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        clean = mirrored(draw(generator), generator).to(device)
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            mean, logvar = vae.encode(clean).latent_dist.parameters.float().chunk(2, dim=1)
            logvar = logvar.clamp(-30.0, 20.0)
            noise = torch.randn(mean.shape, generator=generator).to(device)
            shown = vae.decode(mean + (0.5 * logvar).exp() * noise).sample
            far = perceptual_distance(judge, shown, clean) if judge else mean.new_zeros(())
        error = shown.float() - clean
        squared = error.square().mean()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        total = error.abs().mean() + _SQUARED * squared + _KL * divergence + _PERCEPTUAL * far
        return total, squared.detach()

    return loss


def perceptual_distance(judge: SqueezeNet, shown: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Return the mean distance of unit feature vectors, over positions, stages and images: LPIPS without learned weights."""
    total = shown.new_zeros((), dtype=torch.float32)
    with torch.no_grad():
        wanted = judge.stages(clean, _PERCEPTUAL_DEPTH)
    for got, want in zip(judge.stages(shown, _PERCEPTUAL_DEPTH), wanted, strict=True):
        unit = [nn.functional.normalize(each.float(), dim=1, eps=1e-3) for each in (got, want)]
        total = total + (unit[0] - unit[1]).square().sum(1).mean()
    return total


def mirrored(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return ``batch`` ``[B, C, H, W]`` with half of the images mirrored: an autoencoder need not know left from right."""
    flip = torch.rand(len(batch), 1, 1, 1, generator=generator) < 0.5
    return torch.where(flip, batch.flip(-1), batch)


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: torch.Tensor, batch: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and log-variance, both ``[N, c, h, w]`` float32 on the CPU, of ``pixels`` ``[N, 3, S, S]`` in [-1, 1]."""
    found = [vae.encode(part.to(vae.device)).latent_dist.parameters.cpu() for part in pixels.split(batch)]
    mean, logvar = torch.cat(found).chunk(2, dim=1)
    return mean.contiguous(), logvar.clamp(-30.0, 20.0).contiguous()


def moments(mean: torch.Tensor, logvar: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and standard deviation ``[c]`` of latents drawn from ``[N, c, h, w]`` with image ``weights`` ``[N]``."""
    share = (weights / weights.sum()).view(-1, 1, 1, 1).double()
    centre = (share * mean).sum(0).mean((1, 2))
    spread = (share * ((mean - centre.view(1, -1, 1, 1)).square() + logvar.double().exp())).sum(0).mean((1, 2))
    return centre, spread.sqrt()


@torch.no_grad()
def standardise(vae: AutoencoderKL, centre: torch.Tensor, spread: torch.Tensor) -> None:
    """Change ``vae`` so that its latents are ``(z - centre) / spread`` of what they were, and its images the same.

    The encoder's last and the decoder's first layer are 1x1 convolutions without padding, which take this in exactly.
    A diffusion model starts from noise of mean zero and unit variance, and ``scaling_factor`` alone cannot centre latents.
    """
    encoder, decoder = vae.quant_conv, vae.post_quant_conv
    old = [t.double() for t in (encoder.weight, encoder.bias, decoder.weight, decoder.bias)]
    centre, spread = centre.double().to(vae.device), spread.double().to(vae.device)
    scale = torch.cat([1 / spread, torch.ones_like(spread)])
    shift = torch.cat([centre / spread, 2 * spread.log()])
    encoder.weight.copy_(old[0] * scale.view(-1, 1, 1, 1))
    encoder.bias.copy_(old[1] * scale - shift)
    decoder.weight.copy_(old[2] * spread.view(1, -1, 1, 1))
    decoder.bias.copy_(old[3] + old[2][:, :, 0, 0] @ centre)
