"""Where a layer reads a concatenation is watched, not typed in: the right layers, channel counts and order."""

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from halftone.models.concatenation import concatenated_inputs
from halftone.models.example_inputs import example_inputs


def test_the_shortcuts_of_the_up_path(unet: UNet2DModel) -> None:
    args, kwargs = example_inputs(unet, 1)
    found = concatenated_inputs(unet, args, kwargs)
    shortcuts = {path: parts for path, parts in found.items() if path.endswith("conv_shortcut")}
    # What comes up from below is first, what the down path kept is second.
    assert shortcuts == {
        "up_blocks.0.resnets.0.conv_shortcut": (32, 32),
        "up_blocks.0.resnets.1.conv_shortcut": (32, 16),
        "up_blocks.1.resnets.0.conv_shortcut": (32, 16),
        "up_blocks.1.resnets.1.conv_shortcut": (16, 16),
    }
    for path, parts in found.items():
        layer = unet.get_submodule(path)
        assert sum(parts) == getattr(layer, "in_channels", getattr(layer, "in_features", None))


def test_a_layer_behind_a_norm_reads_no_concatenation(unet: UNet2DModel) -> None:
    args, kwargs = example_inputs(unet, 1)
    assert not any(path.endswith(("conv1", "conv2")) for path in concatenated_inputs(unet, args, kwargs))


def test_watching_leaves_the_model_alone(unet: UNet2DModel) -> None:
    args, kwargs = example_inputs(unet, 1)
    before = unet(*args).sample
    concatenated_inputs(unet, args, kwargs)
    assert torch.equal(unet(*args).sample, before)
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_an_odd_denoiser(odd: nn.Module) -> None:
    args = (torch.randn(2, 3, 8, 8), torch.tensor([1, 2]))
    assert concatenated_inputs(odd, args, {}) == {"mix": (7, 10)}


@pytest.mark.parametrize(
    ("join", "parts"),
    [
        (lambda a, b: torch.cat([a, b], 1), (2, 3)),
        (lambda a, b: torch.cat([b, a], dim=-3), (3, 2)),
        (lambda a, b: torch.cat(tensors=(a, b), dim=1), (2, 3)),
        (lambda a, b: torch.concat([a, b, a[:, :0]], dim=1), (2, 3, 0)),
        (lambda a, b: torch.cat([torch.cat([a, b], 2)] * 5, 1)[:, :5], None),
        (lambda a, b: torch.cat([a, b], 1).relu(), None),
    ],
    ids=["by position", "negative axis", "keywords", "three", "other axis", "not directly"],
)
def test_all_ways_to_concatenate(join: object, parts: tuple[int, ...] | None) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(5, 1, 1)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.layer(join(a, b))  # type: ignore[operator]

    width = 2 if parts is None and join(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)).shape[1] == 5 else 3
    found = concatenated_inputs(Joined(), (torch.randn(1, 2, 2, 2), torch.randn(1, width, 2, 2)), {})
    assert found.get("layer") == parts


def test_tokens_are_joined_along_features() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.length = nn.Linear(5, 1), nn.Linear(2, 1)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.features(torch.cat([a, b], -1)).sum() + self.length(torch.cat([a, a], 1)).sum()

    assert concatenated_inputs(Joined(), (torch.randn(1, 4, 2), torch.randn(1, 4, 3)), {}) == {"features": (2, 3)}
