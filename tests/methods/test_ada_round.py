"""AdaRound and block reconstruction.

Laws held here: h(V0) is the fraction; the soft weight starts as the float weight up to clipping; a code is within one of floor; the
block error is never above nearest rounding's; the regulariser covers every variable, both halves of a split included.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from halftone.calibrate.trajectory import Trajectory
from halftone.calibrate.walk import QUANTIZED, Walk
from halftone.formats import parse
from halftone.formats.segments import along_weight
from halftone.foundation.errors import MatchError
from halftone.methods.contract import Run
from halftone.methods.fit import UnitError
from halftone.methods.output_error import DENOISER, OutputError
from halftone.methods.reconstruct import ada_round
from halftone.methods.reconstruct.ada_round import AdaRound, SoftRounding
from halftone.methods.rounding.nearest import Nearest
from halftone.models.policy import Rule, make_plan
from halftone.models.quant_model import QuantModel
from halftone.models.roles import Architecture, Role
from halftone.quant import QuantSpec
from halftone.quant.weights import weight_affine

GRID = parse("uint4")
QUICK = AdaRound(iterations=30, batch=8, lr=0.05, regularization=1.0, walk_batch=8)


def rounding(seed: int, segments: tuple[int, ...] = (6,), range_: Any = "shrink") -> tuple[SoftRounding, torch.Tensor]:
    weight = torch.randn(5, 6, 2, 2, generator=torch.Generator().manual_seed(seed))
    affine = weight_affine(weight, segments, QuantSpec("uint4", "channel"), range_)
    return SoftRounding(weight, along_weight(affine, segments, 4), GRID), weight


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), segments=st.sampled_from([(6,), (2, 4)]))
def test_h_starts_as_the_fraction(seed: int, segments: tuple[int, ...]) -> None:
    soft, weight = rounding(seed, segments)
    scaled = weight * soft.affine.scale.reciprocal()
    # Fractions of exactly 0 and 1 would be at infinity: they are moved inside by 1e-4.
    assert float((soft.h().detach() - (scaled - scaled.floor())).abs().max()) <= 1.2e-4


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), segments=st.sampled_from([(6,), (2, 4)]))
def test_the_soft_weight_starts_as_the_float_weight_up_to_clipping(seed: int, segments: tuple[int, ...]) -> None:
    soft, weight = rounding(seed, segments)
    low, high = ((bound - soft.affine.zero_point) * soft.affine.scale for bound in (GRID.low, GRID.high))
    error = (soft.soft().detach() - torch.minimum(torch.maximum(weight, low), high)).abs()
    assert bool((error <= 2e-4 * soft.affine.scale).all())


@settings(max_examples=25)
@given(seed=st.integers(0, 1000))
def test_hard_decisions_start_as_nearest_rounding(seed: int) -> None:
    soft, weight = rounding(seed)
    nearest = GRID.encode((weight * soft.affine.scale.reciprocal()).round() + soft.affine.zero_point)
    assert torch.equal(soft.codes(), nearest)


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), spread=st.sampled_from([0.1, 3.0, 100.0]))
def test_a_code_is_within_one_of_floor(seed: int, spread: float) -> None:
    soft, weight = rounding(seed)
    soft.v.data.normal_(0, spread, generator=torch.Generator().manual_seed(seed))
    floor = GRID.round((weight * soft.affine.scale.reciprocal()).floor() + soft.affine.zero_point)
    step = soft.codes().float() - floor
    assert set(step.unique().tolist()) <= {0.0, 1.0}
    assert bool(((soft.h() >= 0) & (soft.h() <= 1)).all())


@settings(max_examples=25)
@given(seed=st.integers(0, 1000))
def test_given_codes_are_the_first_decisions(seed: int) -> None:
    soft, weight = rounding(seed)
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, weight.shape, generator=random, dtype=torch.uint8)
    taken = SoftRounding(weight, soft.affine, GRID, codes)
    assert torch.equal(taken.codes(), codes)
    taken.v.data.neg_()
    step = taken.codes().int() - codes.int()
    side = (weight * soft.affine.scale.reciprocal() - (GRID.decode(codes) - soft.affine.zero_point)).sign().int()
    side[side == 0] = 1
    # The other choice is the neighbour on the side of the float weight, where the grid has one.
    assert torch.equal(step, torch.where((codes.int() + side >= 0) & (codes.int() + side <= 15), side, 0))


@pytest.mark.parametrize("start", ["float", "codes"])
def test_a_harmful_reconstruction_keeps_the_rounding_before(
    joining: Callable[[], QuantModel], vectors: Trajectory, run: Run, start: Any
) -> None:
    model = split(joining, vectors, run)
    before = model.layer("layer").codes()
    method = AdaRound(iterations=1, batch=2, lr=100.0, start=start, warm_up=0.0, walk_batch=16)
    facts = method.apply(model, vectors, run).layers["layer"]
    assert torch.equal(model.layer("layer").codes(), before)
    assert facts["error"] == facts["error_before"] > 0


@pytest.mark.parametrize("segments", [(6,), (2, 4)])
def test_the_regulariser_is_zero_only_when_everything_is_decided(segments: tuple[int, ...]) -> None:
    soft, weight = rounding(0, segments)
    soft.v.data.fill_(50.0)
    assert float(soft.indecision(2.0).detach()) == 0
    soft.v.data.zero_()
    assert float(soft.indecision(2.0).detach()) == pytest.approx(weight.numel())
    soft.v.data.uniform_(-1, 1)
    soft.indecision(2.0).backward()
    assert bool((soft.v.grad != 0).all()), "some variable is not regularised"


def split(make: Callable[[], QuantModel], data: Trajectory, run: Run) -> QuantModel:
    model = make()
    model.assign("layer", replace(model.plan.quantized()["layer"], segments=(8, 4)))
    Nearest("min_max").apply(model, data, run)
    return model


def test_every_variable_is_regularised_while_learning_both_halves_of_a_split_too(
    joining: Callable[[], QuantModel], vectors: Trajectory, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channels that are always zero give the error no gradient: only the regulariser can move their variables."""
    silent = vectors.args[0].clone()
    silent[:, [0, 3, 8, 11]] = 0
    data = replace(vectors, args=(silent,))
    made: list[SoftRounding] = []

    class Watched(SoftRounding):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(ada_round, "SoftRounding", Watched)
    moved = []
    for weight in (0.0, 1.0):
        AdaRound(
            iterations=5, batch=8, lr=0.01, regularization=weight, warm_up=0.0, beta=(2.0, 2.0), walk_batch=8
        ).apply(split(joining, data, run), data, run)
        start = SoftRounding(joining().originals["layer"], made[-1].affine, GRID)
        moved.append((made[-1].v != start.v)[:, [0, 3, 8, 11]])
    assert not bool(moved[0].any()), "the example shows nothing"
    assert bool(moved[1].all())


def test_a_strong_regulariser_decides_everything(
    joining: Callable[[], QuantModel], vectors: Trajectory, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[SoftRounding] = []

    class Watched(SoftRounding):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(ada_round, "SoftRounding", Watched)
    method = AdaRound(iterations=300, batch=16, lr=0.1, regularization=10.0, warm_up=0.1, walk_batch=16)
    method.apply(split(joining, vectors, run), vectors, run)
    start = SoftRounding(joining().originals["layer"], made[-1].affine, GRID)
    assert float(start.indecision(2.0).detach()) > 0.5 * start.v.numel()
    assert float(made[-1].indecision(2.0).detach()) < 0.05 * made[-1].v.numel()


def test_block_error_is_never_above_nearest_rounding(
    unet_model: Callable[..., QuantModel], noise: Trajectory, run: Run
) -> None:
    """Measured anew on each unit, with rates that do good and one that only does harm."""
    for method in (QUICK, replace(QUICK, lr=5.0, iterations=3)):
        model = unet_model()
        Nearest("min_max").apply(model, noise, run)
        nearest = {path: model.layer(path).codes() for path in model.plan.quantized()}
        report = method.apply(model, noise, run)
        found = {path: model.layer(path).codes() for path in nearest}
        again = unet_model()
        Nearest("min_max").apply(again, noise, run)
        better = 0
        for unit in Walk(again, noise, 8, run.store()):
            before = UnitError(unit, QUANTIZED).mean(8)
            for path in unit.layers:
                again.layer(path).hold(found[path], again.layer(path).weight_affine(), again.plan.quantized()[path])
            after = UnitError(unit, QUANTIZED).mean(8)
            assert after <= before * (1 + 1e-6), unit.path
            assert report.layers[unit.path]["error"] == pytest.approx(after, rel=1e-4)
            better += after < before
            for path in unit.layers:
                step = (found[path].int() - nearest[path].int()).abs().max()
                assert int(step) <= 1
        if method is QUICK:
            assert better > 10


def test_a_judged_unit_is_kept_only_where_the_denoisers_error_falls(
    unet_model: Callable[..., QuantModel], noise: Trajectory, run: Run
) -> None:
    model = unet_model()
    Nearest("min_max").apply(model, noise, run)
    nearest = {path: model.layer(path).codes() for path in model.plan.quantized()}
    error = OutputError(model, noise, torch.arange(8), 8)
    before = error.mean(8)
    report = replace(QUICK, judged_on=8).apply(model, noise, run)
    facts = report.layers.pop(DENOISER)
    assert facts["error_before"] == pytest.approx(before, rel=1e-6)
    assert facts["error"] == pytest.approx(error.mean(8), rel=1e-6)
    assert facts["error"] < before
    kept = {unit for unit, found in report.layers.items() if found["error"] < found["error_before"]}
    # Some units lower their own error and not the denoiser's: those have their old rounding.
    assert 0 < len(kept) < len(report.layers)
    for unit in set(report.layers) - kept:
        for path in model.layers_in(unit):
            assert torch.equal(model.layer(path).codes(), nearest[path])


def test_skipped_roles_keep_the_rounding_they_had(
    unet_model: Callable[..., QuantModel], noise: Trajectory, run: Run
) -> None:
    model = unet_model()
    Nearest("min_max").apply(model, noise, run)
    before = {path: model.layer(path).codes() for path in model.plan.quantized()}
    skipped = {
        path for path, planned in model.plan.layers.items() if planned.role.startswith(("time.", "resnet.conv1"))
    }
    report = replace(QUICK, skip=("time.*", "resnet.conv1")).apply(model, noise, run)
    changed = {path for path, codes in before.items() if not torch.equal(model.layer(path).codes(), codes)}
    assert skipped and not changed & skipped
    assert len(changed) > 10, "the layers beside them in a unit are learned"
    assert not any(unit in skipped for unit in report.layers), "nothing is reported of a unit without any"
    with pytest.raises(MatchError, match="steps.test.skip.*no match for 'tme"):
        replace(QUICK, skip=("tme.*",)).apply(model, noise, run)


def test_reconstruction_keeps_scales_and_input_ranges(
    unet_model: Callable[..., QuantModel], noise: Trajectory, run: Run
) -> None:
    from halftone.methods.ranges.static import Static

    model = unet_model()
    Nearest().apply(model, noise, run)
    Static("min_max", samples=8, batch=8).apply(model, noise, run)
    keys = {
        name: value.clone()
        for name, value in model.module.state_dict().items()
        if name.endswith(("scale", "zero_point"))
    }
    replace(QUICK, iterations=2).apply(model, noise, run)
    state = model.module.state_dict()
    assert all(torch.equal(state[name], value) for name, value in keys.items())
    assert model.close() is model.module


@pytest.mark.parametrize("factor", [16.0, 1 / 64])
def test_the_balance_of_losses_does_not_depend_on_the_size_of_activations(
    joining: Callable[[], QuantModel], vectors: Trajectory, run: Run, factor: float
) -> None:
    """Powers of two, so that nothing else is rounded differently."""
    codes = []
    for data in (vectors, replace(vectors, args=(vectors.args[0] * factor,))):
        model = split(joining, data, run)
        AdaRound(iterations=60, batch=16, lr=0.03, regularization=1.0, walk_batch=16).apply(model, data, run)
        codes.append(model.layer("layer").codes())
    assert torch.equal(*codes)


def test_the_balance_of_losses_does_not_depend_on_the_layout(
    joining: Callable[[], QuantModel], vectors: Trajectory, run: Run
) -> None:
    """A linear on tokens and the 1x1 convolution that it is on pixels learn the same codes."""
    weight = joining().originals["layer"]
    tokens = vectors.args[0].view(16, 4, 12)

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 8, bias=False)

        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            return self.layer(sample)

    class Pixels(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(12, 8, 1, bias=False)  # type: ignore[assignment]

    found = []
    for module, sample in ((Linear(), tokens), (Pixels(), tokens.transpose(1, 2).unsqueeze(-1).contiguous())):
        module.layer.weight.data = weight.clone().view(module.layer.weight.shape)
        roles = Architecture({"layer": Role("layer", "body", False)}, frozenset())
        rules = (Rule("*", weight=QuantSpec("uint4", "channel")),)
        model = QuantModel.open(module, roles, make_plan(module, roles, rules))
        data = Trajectory((sample,), {}, torch.arange(16) // 2, {})
        Nearest("min_max").apply(model, data, run)
        AdaRound(iterations=100, batch=8, lr=0.03, regularization=1.0, walk_batch=8).apply(model, data, run)
        found.append(model.layer("layer").codes().flatten(1))
    assert torch.equal(*found)


def test_the_seed_decides(joining: Callable[[], QuantModel], vectors: Trajectory) -> None:
    def codes(seed: int) -> torch.Tensor:
        run = Run(seed=seed, step="test")
        model = split(joining, vectors, run)
        AdaRound(iterations=20, batch=2, lr=0.1, walk_batch=16).apply(model, vectors, run)
        return model.layer("layer").codes()

    assert torch.equal(codes(0), codes(0))
    assert not torch.equal(codes(0), codes(1))


def test_reconstruction_pays(joining: Callable[[], QuantModel], vectors: Trajectory, run: Run) -> None:
    method = AdaRound(iterations=400, batch=32, lr=0.02, regularization=1.0, walk_batch=32)
    report = method.apply(split(joining, vectors, run), vectors, run).layers["layer"]
    assert report["error"] < 0.8 * report["error_before"]
