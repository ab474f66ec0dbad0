"""Network-wise reconstruction: the denoiser's own error falls, and what was not learned stays."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from halftone.calibrate.trajectory import Trajectory
from halftone.foundation.errors import ConfigError
from halftone.methods.contract import Run
from halftone.methods.output_error import OutputError
from halftone.methods.ranges.static import Static
from halftone.methods.reconstruct.network import Network
from halftone.methods.rounding.nearest import Nearest
from halftone.models.quant_model import QuantModel


@pytest.fixture
def many() -> Trajectory:
    return Trajectory((torch.randn(32, 1, 8, 8), torch.linspace(999, 0, 32).long()), {}, torch.arange(32) // 4, {})


def prepared(unet_model: Callable[..., QuantModel], data: Trajectory) -> QuantModel:
    model = unet_model()
    Nearest().apply(model, data, Run())
    Static("min_max", samples=32).apply(model, data, Run())
    return model


def error(model: QuantModel, data: Trajectory) -> torch.Tensor:
    """Return each sample's mean square error against the float model."""
    with torch.no_grad():
        out = model.module(*data.args).sample
        with model.in_float():
            return (out - model.module(*data.args).sample).square().flatten(1).mean(1)


HOW = Network(iterations=60, batch=8, lr=5e-3, walk_batch=16)


def test_the_denoisers_error_falls_and_the_codes_stay(
    unet_model: Callable[..., QuantModel], many: Trajectory, run: Run
) -> None:
    model = prepared(unet_model, many)
    before, codes = error(model, many), {p: model.layer(p).codes() for p in model.plan.quantized()}
    report = HOW.apply(model, many, run)
    assert float(error(model, many).mean()) < 0.8 * float(before.mean())
    facts = report.layers["(denoiser)"]
    assert facts["error"] < facts["error_before"]
    for path, held in codes.items():
        assert torch.equal(model.layer(path).codes(), held)
        assert model.layer(path).weight_trial is None
        assert not model.layer(path).taps


def test_calls_that_show_in_the_image_come_first(
    unet_model: Callable[..., QuantModel], many: Trajectory, run: Run
) -> None:
    after = []
    for first in (True, False):
        influence = torch.full((8,), 0.01)
        influence[:4] = 1.0 if first else 0.01
        influence[4:] = 0.01 if first else 1.0
        model = prepared(unet_model, many)
        HOW.apply(model, replace(many, influence=influence / influence.mean()), run)
        after.append(error(model, many)[:16].mean())
    assert after[0] < after[1]


def test_learning_that_does_not_pay_is_undone(
    unet_model: Callable[..., QuantModel], many: Trajectory, run: Run
) -> None:
    model = prepared(unet_model, many)
    before = error(model, many)
    report = Network(iterations=3, batch=4, lr=5.0, walk_batch=16).apply(model, many, run)
    assert torch.equal(error(model, many), before)
    assert len(report.notes) == 1


def test_a_resumed_run_takes_what_was_found(
    unet_model: Callable[..., QuantModel], many: Trajectory, tmp_path: Path
) -> None:
    run = Run(work=tmp_path, step="network")
    first = prepared(unet_model, many)
    HOW.apply(first, many, run)
    again = prepared(unet_model, many)
    # Other settings that would find other numbers: what is on the disk is taken.
    Network(iterations=1).apply(again, many, run)
    assert torch.equal(error(first, many), error(again, many))


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"lr": 0.0}, {"held_out": 0.95}, {"batch": 0}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Network(**wrong)  # type: ignore[arg-type]


def test_parts_of_a_batch_give_the_gradients_of_the_whole(
    unet_model: Callable[..., QuantModel], many: Trajectory, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, seen = [], []
    answer = OutputError._squares

    def squares(self: OutputError, index: torch.Tensor) -> torch.Tensor:
        seen.append(len(index))
        return answer(self, index)

    monkeypatch.setattr(OutputError, "_squares", squares)
    for gigabytes in (4.0, 1e-9):
        seen.clear()
        model = prepared(unet_model, many)
        replace(HOW, iterations=5, gigabytes=gigabytes).apply(model, many, run)
        found.append(error(model, many))
        assert seen.count(8) == (5 if gigabytes == 4.0 else 0)
        # One alone to see what it keeps, and again with what is computed anew.
        assert seen.count(1) == (1 if gigabytes == 4.0 else 2 + 5 * 8)
        assert not any("forward" in vars(module) for module in model.module.modules())
    # One Adam step apart in the signs of the smallest gradients, no more.
    assert float(found[0].mean()) == pytest.approx(float(found[1].mean()), rel=0.05)
