"""Small models for methods: a U-Net, and a denoiser of one split layer whose numbers can be followed."""

from collections.abc import Callable

import pytest
import torch
from tests.tiny import randomised, tiny_unet
from torch import nn

from halftone.calibrate.trajectory import Trajectory
from halftone.methods.contract import Run
from halftone.models.policy import Rule, make_plan
from halftone.models.quant_model import QuantModel
from halftone.models.roles import Architecture, Role, architecture
from halftone.quant import QuantSpec

W4, A8 = QuantSpec("uint4", "channel"), QuantSpec("uint8")
OPERANDS = {"q": A8, "k": A8, "v": A8, "probs": QuantSpec(zero="none")}


class Joining(nn.Module):
    """One linear that reads the concatenation of both halves of its input; its class stands for a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 8, bias=False)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        a, b = sample.split([8, 4], dim=1)
        return self.layer(torch.cat([a, b], dim=1))


@pytest.fixture
def joining() -> Callable[[], QuantModel]:
    """Open a fresh copy of the same tiny model, 4-bit weights and 8-bit inputs."""
    module = Joining()
    weight = module.layer.weight.detach().clone()

    def make() -> QuantModel:
        fresh = Joining()
        fresh.layer.weight.data = weight.clone()
        found = Architecture({"layer": Role("layer", "body.shortcut", False)}, frozenset())
        model = QuantModel.open(fresh, found, make_plan(fresh, found, (Rule("*", weight=W4, input=A8),)))
        model.concatenated = {"layer": (8, 4)}
        return model

    return make


@pytest.fixture
def vectors() -> Trajectory:
    """Correlated inputs of the tiny model."""
    mixing = torch.randn(12, 12) / 3 + torch.eye(12)
    return Trajectory((torch.randn(64, 12) @ mixing,), {}, torch.arange(64) // 8, {})


@pytest.fixture
def unet_model() -> Callable[..., QuantModel]:
    """Open the same tiny U-Net, freshly, W4A8 with quantized attention."""

    def make() -> QuantModel:
        unet = randomised(tiny_unet(), seed=5)
        found = architecture(unet)
        rules = (Rule("*", weight=W4, input=A8, operands=OPERANDS),)
        return QuantModel.open(unet, found, make_plan(unet, found, rules))

    return make


@pytest.fixture
def noise() -> Trajectory:
    return Trajectory((torch.randn(8, 1, 8, 8), torch.linspace(999, 0, 8).long()), {}, torch.arange(8), {})


@pytest.fixture
def run() -> Run:
    return Run(step="test")
