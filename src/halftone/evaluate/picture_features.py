"""Features of colour pictures, to compare their content with: a latent model's own encoder, or SqueezeNet where it is at hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from halftone.zoo import squeezenet

# Images [N, 3, H, W] in [0, 1] -> features [N, D] float64.
Features = Callable[[np.ndarray], np.ndarray]

_CELLS = 8  # the latents are averaged to so many cells a side: a picture that moved by a pixel stays near itself


def latent_features(vae: AutoencoderKL) -> Features:
    """Return the encoder's mean latents, averaged to 8x8 cells: D = 64 x latent channels.

    They tell colours and shapes apart, and every latent model brings them. Compare models with the encoder of *one* of them.
    """

    def look(x: torch.Tensor) -> torch.Tensor:
        mean = vae.encode(x.to(vae.device, vae.dtype)).latent_dist.mean
        return torch.nn.functional.adaptive_avg_pool2d(mean.float(), _CELLS).flatten(1)

    return _batched(look)


def squeezenet_features(weights: Path) -> Features:
    """Return SqueezeNet's last activations, averaged over the picture: D = 512.

    Raises:
        ArtifactError: ``weights`` is not SqueezeNet 1.0.
    """
    return _batched(squeezenet.load(weights).features)


def _batched(look: Callable[[torch.Tensor], torch.Tensor], batch: int = 64) -> Features:
    @torch.no_grad()
    def features(images: np.ndarray) -> np.ndarray:
        pixels = torch.as_tensor(images, dtype=torch.float32) * 2 - 1
        return torch.cat([look(part).cpu() for part in pixels.split(batch)]).double().numpy()

    return features
