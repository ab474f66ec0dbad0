"""How wrong a unit is, over all its outputs, and what is learned from it."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from halftone.calibrate.store import Store
from halftone.calibrate.trajectory import Trajectory
from halftone.calibrate.walk import FLOAT, QUANTIZED, Unit, Walk
from halftone.formats import Affine
from halftone.formats.kinds.integer import Integer
from halftone.foundation.errors import CalibrationError, FormatError
from halftone.methods.contract import Run
from halftone.methods.fit import UnitError, optimise, unimproved
from halftone.methods.learned import LearnedStep
from halftone.methods.ranges.static import Static
from halftone.methods.reconstruct.ada_round import AdaRound, SoftRounding
from halftone.methods.reconstruct.learned_steps import LearnedSteps
from halftone.methods.rounding.nearest import Nearest
from halftone.models.policy import Rule, make_plan
from halftone.models.quant_model import QuantModel
from halftone.models.roles import Architecture, Role
from halftone.quant import QuantSpec


class Block(nn.Module):
    """Text first, as two-stream blocks of diffusers return it, and much larger than the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.picture = nn.Linear(6, 4, bias=False), nn.Linear(6, 5, bias=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 100 * self.text(x), self.picture(x)


class TwoStreams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(self.block(x), dim=1)


def two_streams() -> QuantModel:
    module = TwoStreams()
    found = Architecture({f"block.{n}": Role(n, "body", False) for n in ("text", "picture")}, frozenset({"Block"}))
    rule = Rule("*", weight=QuantSpec("uint3", "channel"))
    return QuantModel.open(module, found, make_plan(module, found, (rule,)))


def rows(count: int = 48) -> Trajectory:
    mixing = torch.randn(6, 6) / 2 + torch.eye(6)
    return Trajectory((torch.randn(count, 6) @ mixing,), {}, torch.zeros(count).long(), {})


def unit_of(model: QuantModel, data: Trajectory, tmp_path: Any, batch: int = 16) -> Unit:
    return next(iter(Walk(model, data, batch, Store(None, tmp_path))))


def relative(unit: Unit) -> list[float]:
    """Return each output's mean square error over that of its target."""
    args, kwargs, targets = unit.minibatch(QUANTIZED, torch.arange(len(unit)))
    with torch.no_grad():
        out = unit.module(*args, **kwargs)
    return [float((a - b).square().mean() / b.square().mean()) for a, b in zip(out, targets, strict=True)]


def test_each_output_counts_alike_whatever_its_size(tmp_path: Any) -> None:
    model, data = two_streams(), rows()
    Nearest("min_max").apply(model, data, Run())
    unit = unit_of(model, data, tmp_path)
    sizes = [float(target.square().mean()) for target in unit.minibatch(FLOAT, torch.arange(48))[2]]
    expected = sum(relative(unit)) / 2 * sum(sizes) / 2
    error = UnitError(unit, QUANTIZED)
    assert error.mean(7) == pytest.approx(expected, rel=1e-5)
    assert float(error.loss(torch.arange(48)).detach()) == pytest.approx(expected, rel=1e-5)


def test_an_output_that_is_zero_throughout_has_no_part_in_the_balance(tmp_path: Any) -> None:
    model, data = two_streams(), rows()
    model.originals["block.picture"].zero_()
    unit = unit_of(model, data, tmp_path)
    error = UnitError(unit, QUANTIZED)
    assert all(0 < weight < float("inf") for weight in error.weights)
    assert error.mean(16) == 0


@pytest.mark.parametrize("power", [2.0, 2.4])
def test_of_one_output_it_is_the_plain_mean(unet_model: Any, noise: Trajectory, tmp_path: Any, power: float) -> None:
    model = unet_model()
    Nearest("min_max").apply(model, noise, Run())
    unit = unit_of(model, noise, tmp_path, 8)
    args, kwargs, (target,) = unit.minibatch(QUANTIZED, torch.arange(8))
    with torch.no_grad():
        difference = unit.module(*args, **kwargs) - target
        assert torch.equal(UnitError(unit, QUANTIZED, power).loss(torch.arange(8)), difference.abs().pow(power).mean())


def test_an_error_that_is_no_number_is_infinite(tmp_path: Any) -> None:
    model = two_streams()
    unit = unit_of(model, rows(), tmp_path)
    model.layer("block.text").weight.data.fill_(float("nan"))
    assert UnitError(unit, QUANTIZED).mean(16) == float("inf")


def test_both_streams_are_reconstructed(tmp_path: Any) -> None:
    """The picture is second, and a ten-thousandth of the text's size."""
    data, run = rows(), Run(step="test")
    method = AdaRound(iterations=200, batch=48, lr=0.03, regularization=1.0, walk_batch=48)
    before, after = [], []
    for how in (None, method):
        model = two_streams()
        with torch.no_grad():
            torch.manual_seed(1)
            for path in ("block.text", "block.picture"):
                model.originals[path].normal_()
        Nearest("min_max").apply(model, data, run)
        if how is not None:
            how.apply(model, data, run)
        (before if how is None else after).extend(relative(unit_of(model, data, tmp_path)))
    assert all(mine < 0.9 * nearest for mine, nearest in zip(after, before, strict=True)), (before, after)


def test_the_rate_and_the_penalty_are_those_of_their_iteration(tmp_path: Any) -> None:
    """Where the error says nothing, Adam's first step is the rate times the sign of the penalty's gradient."""
    model = two_streams()
    unit = unit_of(model, rows(), tmp_path)
    free = nn.Parameter(torch.zeros(2))
    rates, penalties = [], []

    def rate(i: int) -> float:
        rates.append(i)
        return 0.5 if i == 0 else 0.0

    def penalty(i: int) -> torch.Tensor:
        penalties.append(i)
        return (free * torch.tensor([1.0, -3.0])).sum()

    with torch.no_grad():
        optimise(UnitError(unit, FLOAT), [free], Run(), iterations=3, batch=4, rate=rate, scale=1.0, penalty=penalty)
    assert torch.allclose(free, torch.tensor([-0.5, 0.5]))
    assert penalties == [0, 1, 2]
    assert rates[-3:] == [0, 1, 2]


def test_a_loss_that_is_no_number_is_an_error(tmp_path: Any) -> None:
    unit, free = unit_of(two_streams(), rows(), tmp_path), nn.Parameter(torch.zeros(1))
    how: Any = {"iterations": 3, "batch": 4, "rate": lambda i: 0.5, "scale": 1.0}
    with pytest.raises(CalibrationError, match=r"steps\.learn: block: .*got -inf in iteration 1.*lr"):
        optimise(UnitError(unit, FLOAT), [free], Run(step="learn"), penalty=lambda i: -free.sum() / (1 - i), **how)


def test_units_that_did_not_get_better_are_named() -> None:
    facts = {
        "a": {"error_before": 2.0, "error": 1.0},
        "b": {"error_before": 2.0, "error": 2.0},
        "exact": {"error_before": 0.0, "error": 0.0},
    }
    assert unimproved(facts) == ["1 of 3 units did not get better and keep what they had: b"]
    assert unimproved({"a": facts["a"]}) == []


@dataclass(frozen=True)
class Halves(Integer):
    """A grid that is not made of consecutive integers."""

    @property
    def integral(self) -> bool:
        return False


def test_a_grid_without_a_next_integer_is_refused(
    unet_model: Any, noise: Trajectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = Halves(4, False)
    affine = Affine(torch.ones(3, 1), torch.zeros(3, 1))
    with pytest.raises(FormatError, match="a grid of consecutive integers, got uint4"):
        SoftRounding(torch.randn(3, 4), affine, grid)
    with pytest.raises(FormatError, match="a grid of consecutive integers, got uint4"):
        LearnedStep(affine, grid, (4,), -1)
    model = unet_model()
    Nearest("min_max").apply(model, noise, Run())
    Static("min_max", samples=8, batch=8).apply(model, noise, Run())
    monkeypatch.setattr(QuantSpec, "number_format", grid)
    with pytest.raises(FormatError, match="weight of conv_in: expected a grid of consecutive integers"):
        AdaRound().apply(model, noise, Run())
    with pytest.raises(FormatError, match=r"conv_in\.input: expected a grid of consecutive integers"):
        LearnedSteps().apply(model, noise, Run())
