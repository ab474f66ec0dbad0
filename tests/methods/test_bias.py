"""Bias correction: the constant goes, the float model stays, and calls that do not matter do not decide."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from halftone.calibrate.trajectory import Trajectory
from halftone.foundation.errors import ConfigError
from halftone.methods.contract import Run
from halftone.methods.corrections.bias import Bias
from halftone.methods.ranges.static import Static
from halftone.methods.rounding.nearest import Nearest
from halftone.models.policy import Rule, make_plan
from halftone.models.quant_model import QuantModel
from halftone.models.roles import Architecture, Role
from halftone.quant import QuantSpec


class Line(nn.Module):
    """Two linears in a row, each a unit of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(sample)))


@pytest.fixture
def line() -> QuantModel:
    torch.manual_seed(3)
    module = Line()
    roles = {path: Role(path, "body.linear", False) for path in ("first", "second")}
    found = Architecture(roles, frozenset())
    return QuantModel.open(module, found, make_plan(module, found, (Rule("*", weight=QuantSpec("uint3", "channel")),)))


@pytest.fixture
def shifted() -> Trajectory:
    """Inputs whose mean is far from zero, 16 calls of 8 samples."""
    return Trajectory((torch.randn(128, 6) + 2,), {}, torch.arange(128) // 8, {})


def shift(model: QuantModel, data: Trajectory) -> torch.Tensor:
    """Return the median shift of the model's outputs against the float model's."""
    with torch.no_grad():
        out = model.module(*data.args)
        with model.in_float():
            return (out - model.module(*data.args)).median(0).values


def test_the_constant_goes(line: QuantModel, shifted: Trajectory, run: Run) -> None:
    Nearest().apply(line, shifted, run)
    before = shift(line, shifted)
    assert float(before.abs().max()) > 0.05
    report = Bias(walk_batch=16).apply(line, shifted, run)
    assert set(report.layers) == {"first", "second"}
    # The last layer is corrected for what is left of the first one's error.
    assert float(shift(line, shifted).abs().max()) < 1e-5


def test_the_float_model_keeps_its_biases(line: QuantModel, shifted: Trajectory, run: Run) -> None:
    held = {path: bias.clone() for path, bias in line.biases.items()}
    Nearest().apply(line, shifted, run)
    Bias().apply(line, shifted, run)
    for path, bias in line.biases.items():
        assert torch.equal(bias, held[path])
        assert not torch.equal(line.layer(path).bias, bias)


def test_one_call_with_large_errors_does_not_move_the_others(line: QuantModel, shifted: Trajectory, run: Run) -> None:
    Nearest().apply(line, shifted, run)
    wild = shifted.args[0].clone()
    wild[-8:] *= 100
    Bias().apply(line, Trajectory((wild,), {}, shifted.calls, {}), run)
    rest = Trajectory((shifted.args[0][:-8],), {}, shifted.calls[:-8], {})
    with torch.no_grad():
        spread = line.module(*rest.args).std(0)
    assert bool((shift(line, rest).abs() < 0.05 * spread).all())


def test_layers_without_a_bias_and_convolutions(
    unet_model: Callable[..., QuantModel], noise: Trajectory, run: Run
) -> None:
    model = unet_model()
    Nearest().apply(model, noise, run)
    Static("min_max", samples=8, batch=4).apply(model, noise, run)
    report = Bias(walk_batch=4).apply(model, noise, run)
    assert set(report.layers) == {path for path in model.plan.quantized() if model.biases[path] is not None}
    assert all(model.layer(path).bias is None for path in model.plan.quantized() if path not in report.layers)
    with torch.no_grad():
        assert bool(torch.isfinite(model.module(*noise.args, **noise.kwargs).sample).all())


def test_a_resumed_run_is_the_same(
    unet_model: Callable[..., QuantModel], noise: Trajectory, run: Run, tmp_path: Path
) -> None:
    found = []
    for _ in range(2):  # the second one reads every memo of the first
        model, kept = unet_model(), replace(run, work=tmp_path, step="bias")
        Nearest().apply(model, noise, run)
        Static("min_max", samples=8, batch=4).apply(model, noise, run)
        Bias(walk_batch=4).apply(model, noise, kept)
        found.append({path: model.layer(path).bias for path in model.plan.quantized()})
    assert all(torch.equal(a, found[1][path]) for path, a in found[0].items() if a is not None)


def test_a_batch_of_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="walk_batch"):
        Bias(walk_batch=0)
