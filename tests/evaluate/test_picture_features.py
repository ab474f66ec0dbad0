"""Features of pictures: their shapes, and that a picture does not depend on its neighbours."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.emoji import SMALL

from halftone.evaluate.picture_features import latent_features, squeezenet_features
from halftone.zoo import emoji_sd
from halftone.zoo.squeezenet import SqueezeNet


@pytest.mark.parametrize(("kind", "width"), [("latents", 256), ("squeezenet", 512)])
def test_features(kind: str, width: int, tmp_path: Path) -> None:
    if kind == "latents":
        look = latent_features(emoji_sd.autoencoder(SMALL).eval())
    else:
        save_file(SqueezeNet().state_dict(), tmp_path / "weights.safetensors")
        look = squeezenet_features(tmp_path / "weights.safetensors")
    images = np.random.default_rng(0).random((3, 3, 32, 32), dtype=np.float32)
    found = look(images)
    assert found.shape == (3, width) and found.dtype == np.float64 and bool(torch.tensor(found).isfinite().all())
    np.testing.assert_allclose(look(images[2:]), found[2:], atol=1e-5)
