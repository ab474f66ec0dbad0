"""Split shortcuts: chosen by a bimodality score or by decree, for weights and activations alike."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch

from halftone.calibrate.trajectory import Trajectory
from halftone.methods.contract import Run
from halftone.methods.ranges.static import Static
from halftone.methods.rounding.nearest import Nearest
from halftone.methods.transforms.split_shortcut import SplitShortcut, bimodality
from halftone.models.quant_model import QuantModel


def test_bimodality_by_hand() -> None:
    """Ranges 10 and 1 wide, equal weights: joint 10^2 * 2, apart 10^2 + 1^2, so 10 log10(200 / 101)."""
    ranges = torch.tensor([[-5.0, 5.0], [0.0, 1.0]])
    assert bimodality(ranges, torch.ones(1, 2), (1, 1)) == pytest.approx(2.9672, abs=1e-3)
    # All of the weight on the narrow part: 100 against 1 is 20 dB; all of it on the wide one: nothing to gain.
    assert bimodality(ranges, torch.tensor([[0.0, 3.0]]), (1, 1)) == pytest.approx(20.0)
    assert bimodality(ranges, torch.tensor([[3.0, 0.0]]), (1, 1)) == pytest.approx(0.0)


def test_equal_ranges_score_nothing() -> None:
    ranges = torch.tensor([[-2.0, 3.0], [-2.0, 3.0], [-2.0, 3.0]])
    assert bimodality(ranges, torch.randn(4, 6, 3, 3), (1, 2, 3)) == pytest.approx(0.0, abs=1e-9)


def test_zero_is_part_of_every_range() -> None:
    """A part far from zero needs a grid from zero on."""
    assert bimodality(torch.tensor([[9.0, 10.0], [0.0, 10.0]]), torch.ones(1, 2), (1, 1)) == pytest.approx(0.0)


@pytest.mark.parametrize("ranges", [torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [0.0, 1.0]])])
def test_dead_parts_have_a_finite_score(ranges: torch.Tensor) -> None:
    for weight in (torch.zeros(1, 2), torch.ones(1, 2)):
        assert 0 <= bimodality(ranges, weight, (1, 1)) < 100


@pytest.mark.parametrize(
    ("select", "bimodal", "expected"),
    [
        ("all", False, (8, 4)),
        ("all", True, (8, 4)),
        ("none", True, ()),
        ("auto", True, (8, 4)),
        ("auto", False, ()),
    ],
)
def test_selection(
    joining: Callable[[], QuantModel],
    vectors: Trajectory,
    run: Run,
    select: Literal["auto", "all", "none"],
    bimodal: bool,
    expected: tuple[int, ...],
) -> None:
    sample = vectors.args[0].clone().clamp(-1, 1)
    if bimodal:
        sample[:, 8:] *= 20
    model, data = joining(), replace(vectors, args=(sample,))
    facts = SplitShortcut(select=select).apply(model, data, run).layers["layer"]
    assert model.plan.quantized()["layer"].segments == expected
    assert (facts["parts"], facts["split"]) == ([8, 4], bool(expected))
    assert (facts["score_db"] > 1) == bimodal
    wide = 20 if bimodal else 1
    assert facts["ranges"] == [[-1, 1], [-wide, wide]]


def test_a_split_holds_for_weights_and_activations(
    joining: Callable[[], QuantModel], vectors: Trajectory, run: Run
) -> None:
    model = joining()
    SplitShortcut(select="all").apply(model, vectors, run)
    Nearest().apply(model, vectors, run)
    Static(samples=64).apply(model, vectors, run)
    layer = model.layer("layer")
    assert layer.weight_scale.shape == (2, 8)
    assert layer.input_scale.shape == (2,)
    assert layer.segments == (8, 4)


@pytest.mark.parametrize(("select", "split"), [(True, True), ("on", True), (False, False), ("off", False)])
def test_on_and_off(
    joining: Callable[[], QuantModel], vectors: Trajectory, run: Run, select: str | bool, split: bool
) -> None:
    facts = SplitShortcut(select=select).apply(joining(), vectors, run).layers["layer"]  # type: ignore[arg-type]
    assert facts["split"] is split


def test_splitting_saves_a_bimodal_layer(joining: Callable[[], QuantModel], vectors: Trajectory, run: Run) -> None:
    sample = vectors.args[0].clone()
    sample[:, 8:] *= 100
    data = replace(vectors, args=(sample,))
    errors = []
    for select in ("none", "all"):
        model = joining()
        model.originals["layer"].data[:, 8:] /= 100
        with model.in_float():
            wanted = model.module(sample) if model.layer("layer").scheme else None
        wanted = sample @ model.originals["layer"].t()
        SplitShortcut(select=select).apply(model, data, run)  # type: ignore[arg-type]
        Nearest("min_max").apply(model, data, run)
        Static("min_max", samples=64).apply(model, data, run)
        errors.append(float((model.module(sample) - wanted).square().mean()))
    assert errors[1] < 0.2 * errors[0]


def test_only_roles_of_shortcuts_are_split(joining: Callable[[], QuantModel], vectors: Trajectory, run: Run) -> None:
    model = joining()
    assert SplitShortcut(roles="resnet.*", select="all").apply(model, vectors, run).layers == {}
    assert model.plan.quantized()["layer"].segments == ()


def test_a_model_without_concatenations_is_left_alone(
    joining: Callable[[], QuantModel], vectors: Trajectory, run: Run, tmp_path
) -> None:
    model = joining()
    model.concatenated = {}
    assert SplitShortcut(select="all").apply(model, vectors, Run(work=tmp_path, step="split")).layers == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_float_model_is_unchanged(
    joining: Callable[[], QuantModel], vectors: Trajectory, run: Run, dtype: torch.dtype
) -> None:
    model = joining()
    model.module.to(dtype)
    data = replace(vectors, args=(vectors.args[0].to(dtype),))
    before = model.module(*data.args)
    SplitShortcut(select="all").apply(model, data, run)
    assert model.plan.quantized()["layer"].segments == (8, 4)
    after = model.module(*data.args)
    assert after.dtype == dtype and torch.equal(before, after)
