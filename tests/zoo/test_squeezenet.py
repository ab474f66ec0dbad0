"""SqueezeNet: the published layout loads, anything else is refused, features see pictures."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from halftone.foundation.errors import ArtifactError
from halftone.zoo.autoencoder_training import perceptual_distance
from halftone.zoo.squeezenet import SqueezeNet, load


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("squeezenet") / "weights.safetensors"
    torch.manual_seed(0)
    save_file({**SqueezeNet().state_dict(), "conv10.weight": torch.zeros(1000, 512, 1, 1)}, file)
    return file


def test_features(weights: Path) -> None:
    model = load(weights)
    x = torch.rand((2, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = model.features(x)
    assert found.shape == (2, 512) and not model.training
    torch.testing.assert_close(model.features(x[1:]), found[1:])
    # Sizes of the stages at the size it was trained on, as published: pooling rounds up.
    stages = model.stages(torch.zeros(1, 3, 227, 227))
    assert [list(stage.shape[1:]) for stage in stages] == [[96, 111, 111], [256, 55, 55], [512, 27, 27], [512, 13, 13]]


def test_perceptual_distance(weights: Path) -> None:
    model = load(weights)
    x = torch.rand((2, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert perceptual_distance(model, x, x).item() == 0
    other = x.flip(-1).requires_grad_()
    distance = perceptual_distance(model, other, x)
    distance.backward()
    assert distance.item() > 0 and other.grad is not None and bool(other.grad.abs().sum() > 0)


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    with pytest.raises(ArtifactError, match="SqueezeNet 1.0"):
        load(file)
    save_file({"conv1.weight": torch.zeros(3)}, file)
    with pytest.raises(ArtifactError, match="SqueezeNet 1.0"):
        load(file)
