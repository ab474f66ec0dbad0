"""GPTQ: better than nearest rounding where inputs are correlated, the same where they are not."""

from collections.abc import Callable
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from halftone.calibrate.trajectory import Trajectory
from halftone.formats import Affine, dequantize, parse, quantize
from halftone.methods.columns import compensated, in_blocks, round_columns
from halftone.methods.contract import Run
from halftone.methods.rounding.gptq import Gptq, input_rows
from halftone.methods.rounding.nearest import Nearest
from halftone.models.quant_model import QuantModel
from halftone.quant import QuantSpec
from halftone.quant.weights import weight_affine

GRID = parse("uint3")


def problem(seed: int, n: int = 24) -> tuple[torch.Tensor, Affine, torch.Tensor]:
    """Return a weight, its affine for each element, and correlated inputs' second moment."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(10, n, generator=random)
    x = torch.randn(4 * n, n // 3, generator=random) @ torch.randn(n // 3, n, generator=random)
    x = x + 0.3 * torch.randn(4 * n, n, generator=random)
    affine = weight_affine(weight, (n,), QuantSpec("uint3", "channel"), "min_max")
    full = Affine(affine.scale.view(-1, 1).expand(10, n), affine.zero_point.view(-1, 1).expand(10, n))
    return weight, full, x.t() @ x / len(x)


def cost(difference: torch.Tensor, hessian: torch.Tensor) -> float:
    return float(((difference.double() @ hessian.double()) * difference.double()).sum())


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), ordered=st.booleans())
def test_beats_nearest_on_correlated_inputs(seed: int, ordered: bool) -> None:
    weight, affine, hessian = problem(seed)
    codes, rounded = round_columns(weight, affine, GRID, hessian, 0.01, ordered)
    assert torch.equal(dequantize(codes, affine, GRID), rounded)
    nearest = dequantize(quantize(weight, affine, GRID), affine, GRID)
    assert cost(rounded - weight, hessian) < 0.85 * cost(nearest - weight, hessian)


@given(seed=st.integers(0, 10_000), ordered=st.booleans())
def test_equals_nearest_on_uncorrelated_inputs(seed: int, ordered: bool) -> None:
    weight, affine, _ = problem(seed)
    # Values at ties too, where multiplying by the reciprocal and dividing differ.
    weight[:, ::2] = affine.scale[:, ::2] * ((weight[:, ::2] * 2).round() + 0.5)
    diagonal = torch.diag(torch.rand(24, generator=torch.Generator().manual_seed(seed)) + 0.1)
    for hessian in (diagonal, torch.eye(24)):
        codes, _ = round_columns(weight, affine, GRID, hessian, 0.01, ordered)
        assert torch.equal(codes, quantize(weight, affine, GRID))


def test_blocks_of_columns_change_nothing() -> None:
    """Longer than one lazy block, against the plain algorithm of one column at a time."""
    n = 150
    weight, affine, hessian = problem(1, n)
    codes, _ = round_columns(weight, affine, GRID, hessian, 0.05, False)
    h = hessian.double() + 0.05 * hessian.double().diagonal().mean() * torch.eye(n)
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    w, rounded = weight.double().clone(), torch.empty(10, n, dtype=torch.float64)
    for i in range(n):
        level = GRID.round((w[:, i] / affine.scale[:, i]).round() + affine.zero_point[:, i])
        rounded[:, i] = (level - affine.zero_point[:, i]) * affine.scale[:, i]
        w[:, i:] -= ((w[:, i] - rounded[:, i]) / upper[i, i])[:, None] * upper[i, i:]
    differing = (dequantize(codes, affine, GRID) - rounded).abs() > 1e-4
    # Float32 may turn a tie, and what follows a turned tie in its row.
    assert int(differing.any(1).sum()) <= 2


def test_inputs_that_are_always_zero_are_rounded_to_nearest() -> None:
    weight, affine, hessian = problem(2)
    hessian[3], hessian[:, 3] = 0, 0
    codes, _ = round_columns(weight, affine, GRID, hessian, 0.01, True)
    assert torch.equal(codes[:, 3], quantize(weight, affine, GRID)[:, 3])


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(6, 4, 3, padding=1),
        nn.Conv2d(6, 4, (1, 3), stride=2),
        nn.Conv2d(6, 4, 3, dilation=2, padding=2),
        nn.Conv2d(6, 4, 3, groups=2),
        nn.Conv2d(6, 4, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1)),
    ],
    ids=["3x3", "1x3 strided", "dilated", "grouped", "uneven"],
)
def test_a_convolution_is_a_linear_on_its_rows(conv: nn.Conv2d) -> None:
    x = torch.randn(2, 6, 7, 8)
    rows = input_rows(conv, x, torch.arange)
    parts = zip(rows.chunk(conv.groups, 1), conv.weight.flatten(1).chunk(conv.groups), strict=True)
    out = torch.cat([rows @ weight.t() for rows, weight in parts], dim=1) + conv.bias
    wanted = conv(x)
    assert torch.allclose(out.view(2, -1, 4).transpose(1, 2).reshape(wanted.shape), wanted, atol=1e-5)
    some = torch.randperm(len(rows))[:5]
    assert torch.equal(input_rows(conv, x, lambda count: some), rows[some])


def test_on_a_model_every_layer_is_no_worse_by_its_own_measure(
    unet_model: Callable[..., QuantModel], noise: Trajectory, run: Run
) -> None:
    model = unet_model()
    Nearest().apply(model, noise, run)
    before = {path: model.layer(path).codes() for path in model.plan.quantized()}
    report = Gptq(walk_batch=8).apply(model, noise, run).layers
    assert set(report) == set(before)
    total = [sum(facts[key] for facts in report.values()) for key in ("error_nearest", "error")]
    assert total[1] < 0.7 * total[0]
    assert all(
        not torch.equal(model.layer(path).codes(), codes) for path, codes in before.items() if codes.numel() > 200
    )


def test_skipped_roles_keep_the_rounding_they_had(
    unet_model: Callable[..., QuantModel], noise: Trajectory, run: Run
) -> None:
    model = unet_model()
    Nearest().apply(model, noise, run)
    skipped = {path for path, planned in model.plan.layers.items() if planned.role == "resnet.conv1"}
    before = {path: model.layer(path).codes() for path in skipped}
    report = Gptq(walk_batch=8, skip=("resnet.conv1",)).apply(model, noise, run).layers
    assert skipped and set(report) == set(model.plan.quantized()) - skipped
    assert all(torch.equal(model.layer(path).codes(), codes) for path, codes in before.items())


def test_split_layers_keep_the_scales_of_their_parts(
    joining: Callable[[], QuantModel], vectors: Trajectory, run: Run
) -> None:
    model = joining()
    model.assign("layer", replace(model.plan.quantized()["layer"], segments=(8, 4)))
    Nearest().apply(model, vectors, run)
    affine = model.layer("layer").weight_affine()
    report = Gptq(walk_batch=16).apply(model, vectors, run).layers["layer"]
    assert report["error"] < report["error_nearest"]
    assert torch.equal(model.layer("layer").weight_affine().scale, affine.scale)
    assert affine.scale.shape == (2, 8)


@given(seed=st.integers(0, 10_000), ridge=st.floats(0.001, 0.5))
def test_the_compensated_weight_is_the_least_squares_one(seed: int, ridge: float) -> None:
    random = torch.Generator().manual_seed(seed)
    theirs = torch.randn(60, 8, generator=random, dtype=torch.float64)
    mine = theirs + 0.2 * torch.randn(60, 8, generator=random, dtype=torch.float64)
    weight = torch.randn(5, 8, generator=random)
    second, cross = mine.t() @ mine / 60, theirs.t() @ mine / 60
    found = compensated(weight, second.float(), cross.float(), ridge).double()
    # The same problem as one least-squares system: rows of the outputs, and of the pull towards the weight.
    pull = (ridge * second.diagonal().mean() * 60).sqrt() * torch.eye(8, dtype=torch.float64)
    left, right = torch.cat([mine, pull]), torch.cat([theirs @ weight.double().t(), pull @ weight.double().t()])
    assert torch.allclose(found, torch.linalg.lstsq(left, right).solution.t(), atol=1e-4)


def test_equal_inputs_leave_the_weight_alone() -> None:
    weight, _, hessian = problem(5)
    assert torch.allclose(compensated(weight, hessian, hessian, 0.01), weight, atol=1e-6)


def test_float_targets_bring_the_output_nearer_to_the_float_models(
    unet_model: Callable[..., QuantModel], noise: Trajectory, run: Run
) -> None:
    errors = {}
    for targets in ("own", "float"):
        model = unet_model()
        Nearest().apply(model, noise, run)
        Gptq(walk_batch=8, targets=targets).apply(model, noise, run)
        with torch.no_grad():
            out = model.module(*noise.args, **noise.kwargs).sample
            with model.in_float():
                wanted = model.module(*noise.args, **noise.kwargs).sample
        errors[targets] = float((out - wanted).square().mean())
    assert errors["float"] < 0.9 * errors["own"], errors


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), width=st.integers(1, 24), ordered=st.booleans())
def test_a_block_is_rounded_as_if_it_were_alone(seed: int, width: int, ordered: bool) -> None:
    weight, affine, hessian = problem(seed)
    spans = [slice(start, min(start + width, 24)) for start in range(0, 24, width)]
    moments = torch.zeros(len(spans), width, width)
    for moment, span in zip(moments, spans, strict=True):
        size = span.stop - span.start
        moment[:size, :size] = hessian[span, span]
    part = Affine(in_blocks(affine.scale, width, fill=1.0), in_blocks(affine.zero_point, width))
    codes, rounded = round_columns(in_blocks(weight, width), part, GRID, moments, 0.01, ordered)
    assert rounded.shape == (len(spans), 10, width)
    whole = codes.movedim(0, 1).flatten(1)[:, :24]
    for span in spans:
        alone = Affine(affine.scale[:, span], affine.zero_point[:, span])
        wanted, _ = round_columns(weight[:, span], alone, GRID, hessian[span, span], 0.01, ordered)
        assert (whole[:, span] != wanted).float().mean() < 0.02  # sums in another order may turn a tie


@pytest.mark.parametrize("how", [{"columns": 40}, {"together": True}, {"columns": 40, "together": True}], ids=str)
def test_cheaper_looks_still_beat_nearest(
    how: dict, unet_model: Callable[..., QuantModel], noise: Trajectory, run: Run
) -> None:
    model = unet_model()
    Nearest().apply(model, noise, run)
    report = Gptq(walk_batch=8, **how).apply(model, noise, run).layers
    assert set(report) == set(model.plan.quantized())
    total = [sum(facts[key] for facts in report.values()) for key in ("error_nearest", "error")]
    assert total[1] < 0.8 * total[0]
