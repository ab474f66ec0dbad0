"""SqueezeNet 1.0 trained on ImageNet: features of colour images where the weights are at hand; they do not ship."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from halftone.foundation.errors import ArtifactError

FILE = "squeezenet_v1_0_imagenet.safetensors"
_SIZE = 227  # pixels a side that the network was trained on
_MEAN = (104.0, 117.0, 123.0)  # of blue, green, red
# (squeezed channels, channels of each of the two expansions), fire2 to fire9.
_FIRE = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
_POOLED_AFTER = (4, 8)


class _Fire(nn.Module):
    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.squeeze(x))
        return torch.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1))


class SqueezeNet(nn.Module):
    """The convolutions of SqueezeNet 1.0, without its classifier. Images are RGB, ``[N, 3, H, W]`` in [-1, 1]."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, 2)
        inputs = 96
        for number, (squeezed, expanded) in enumerate(_FIRE, start=2):
            self.add_module(f"fire{number}", _Fire(inputs, squeezed, expanded))
            inputs = 2 * expanded
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)

    def stages(self, x: torch.Tensor, last: int = 9) -> list[torch.Tensor]:
        """Return the activations before each pooling and those of ``fire{last}``, at the size ``x`` comes in."""
        x = torch.relu(self.conv1((x.flip(1) + 1) * 127.5 - self.mean))
        found = [x]
        x = nn.functional.max_pool2d(x, 3, 2, ceil_mode=True)
        for number in range(2, last + 1):
            x = self.get_submodule(f"fire{number}")(x)
            if number in _POOLED_AFTER and number != last:
                found.append(x)
                x = nn.functional.max_pool2d(x, 3, 2, ceil_mode=True)
        return [*found, x]

    @torch.no_grad()
    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``[N, 512]``: fire9 averaged over the picture, which is enlarged to 227 pixels."""
        large = nn.functional.interpolate(x, (_SIZE, _SIZE), mode="bilinear", align_corners=False, antialias=True)
        return self.stages(large)[-1].mean((2, 3))


def load(weights: Path) -> SqueezeNet:
    """Return the network in evaluation mode.

    Raises:
        ArtifactError: the file is absent, damaged, or holds another network.
    """
    model = SqueezeNet()
    try:
        kept = {name: value for name, value in load_file(weights).items() if not name.startswith("conv10.")}
        model.load_state_dict(kept)
    except (OSError, SafetensorError, RuntimeError) as error:
        expected = "SqueezeNet 1.0 (conv1, fire2..9)"
        raise ArtifactError(str(weights), expected, str(error).splitlines()[0]) from error
    return model.eval().requires_grad_(False)
