"""Static ranges and learned steps: faults are named, steps stay positive, the error never rises."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from halftone.calibrate.trajectory import Trajectory
from halftone.calibrate.walk import FLOAT, Walk
from halftone.formats import Affine, fake_quantize, parse
from halftone.foundation.errors import CalibrationError
from halftone.methods.contract import Run
from halftone.methods.learned import LearnedStep, LearnedWeight
from halftone.methods.ranges.static import Static, thin
from halftone.methods.reconstruct.learned_steps import LearnedSteps
from halftone.methods.rounding.nearest import Nearest
from halftone.models.quant_model import QuantModel

RANGES = Static("min_max", samples=8, batch=4)


def ranged(model: QuantModel, data: Trajectory, run: Run, how: Static = RANGES) -> QuantModel:
    Nearest().apply(model, data, run)
    how.apply(model, data, run)
    return model


def test_every_planned_site_gets_a_scale(unet_model: Callable[..., QuantModel], noise: Trajectory, run: Run) -> None:
    model = unet_model()
    Nearest().apply(model, noise, run)
    report = RANGES.apply(model, noise, run)
    names = {f"{path}.{site}" for path, _, site in model.activation_sites()}
    assert set(report.layers) == names
    assert len(names) == len(model.plan.quantized()) + 4 * 4
    assert all(owner.site_affine(site) is not None and not owner.taps for _, owner, site in model.activation_sites())


def test_the_range_is_what_flows_through(joining: Callable[[], QuantModel], vectors: Trajectory, run: Run) -> None:
    model = joining()
    model.assign("layer", replace(model.plan.quantized()["layer"], segments=(8, 4)))
    ranged(model, vectors, run, replace(RANGES, samples=64))
    spec = model.plan.quantized()["layer"].input
    parts = vectors.args[0].split([8, 4], dim=1)
    wanted = spec.affine(torch.stack([p.min() for p in parts]), torch.stack([p.max() for p in parts]))
    found = model.layer("layer").site_affine("input")
    assert torch.equal(found.scale, wanted.scale)
    assert torch.equal(found.zero_point, wanted.zero_point)


def test_ranges_do_not_depend_on_ranges_set_before(
    joining: Callable[[], QuantModel], vectors: Trajectory, run: Run
) -> None:
    model = ranged(joining(), vectors, run)
    first = model.layer("layer").site_affine("input")
    model.layer("layer").set_site_affine("input", Affine(first.scale * 100, first.zero_point))
    RANGES.apply(model, vectors, run)
    assert torch.equal(model.layer("layer").site_affine("input").scale, first.scale)


def test_thinning_keeps_the_extremes() -> None:
    x = torch.randn(3, 1000)
    x[1, 777], x[2, 3] = 50, -50
    kept = thin(x, 100)
    assert (float(kept.min()), float(kept.max()), kept.shape[0]) == (-50, 50, 1)
    assert 90 <= kept.shape[1] <= 110
    assert thin(x, 10**6).shape == (1, 3002)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_no_numbers_name_their_site(
    unet_model: Callable[..., QuantModel], noise: Trajectory, run: Run, value: float
) -> None:
    model = unet_model()
    Nearest().apply(model, noise, run)
    sample = noise.args[0].clone()
    sample[5, 0, 0, 0] = value
    with pytest.raises(CalibrationError, match=r"activations at conv_in\.input.*NaN or infinity"):
        RANGES.apply(model, replace(noise, args=(sample, noise.args[1])), run)
    assert not any(owner.taps for _, owner, _ in model.activation_sites())


def test_a_site_that_is_never_reached_is_named(
    joining: Callable[[], QuantModel], vectors: Trajectory, run: Run
) -> None:
    model = joining()
    Nearest().apply(model, vectors, run)
    model.module.forward = lambda sample: sample  # type: ignore[method-assign]
    with pytest.raises(CalibrationError, match=r"layer\.input.*never reached"):
        RANGES.apply(model, vectors, run)


def test_a_step_starts_as_the_definition() -> None:
    grid = parse("uint4")
    scale = 0.1 * torch.arange(1, 400)
    affine = Affine(scale, torch.full_like(scale, 3.0))
    step = LearnedStep(affine, grid, (1,) * 399, -1)
    for factor in (0.5, 2.5, 0.31, -4.0, 99.0):
        x = (scale * factor).view(1, -1)
        assert torch.equal(step(x), fake_quantize(x, affine, grid)), "ties must fall as in the definition"


def test_gradients_of_a_step() -> None:
    step = LearnedStep(Affine(torch.tensor([0.5]), torch.tensor([8.0])), parse("uint4"), (3,), -1)
    x = torch.tensor([[0.6, -100.0, 100.0]], requires_grad=True)
    step(x).sum().backward()
    assert x.grad.tolist() == [[1.0, 0.0, 0.0]]
    # d/d theta = scale * (round(v) - v) inside, scale * (level - zero point) where clipped.
    assert float(step.theta.grad) == pytest.approx(0.5 * ((1 - 1.2) + (0 - 8) + (15 - 8)), abs=1e-5)


@pytest.mark.parametrize("theta", [-60.0, 0.0, 60.0])
def test_steps_are_positive_whatever_the_optimizer_does(theta: float) -> None:
    step = LearnedStep(Affine(torch.tensor([0.5]), torch.tensor([8.0])), parse("uint4"), (3,), -1)
    step.theta.data.fill_(theta)
    assert 0 < float(step.affine().scale.detach()) < float("inf")


@pytest.mark.parametrize(
    "method",
    [
        LearnedSteps(iterations=12, batch=8, lr=0.01, walk_batch=8),
        LearnedSteps(iterations=4, batch=4, lr=3.0, walk_batch=8),
        LearnedSteps(iterations=4, batch=4, lr=0.05, walk_batch=8, inputs="quantized"),
    ],
    ids=["good", "harmful", "quantized inputs"],
)
def test_the_error_never_rises_and_steps_stay_positive(
    unet_model: Callable[..., QuantModel], noise: Trajectory, run: Run, method: LearnedSteps
) -> None:
    model = ranged(unet_model(), noise, run)
    start = {f"{path}.{site}": owner.site_affine(site) for path, owner, site in model.activation_sites()}
    report = method.apply(model, noise, run).layers
    found = {f"{path}.{site}": owner.site_affine(site) for path, owner, site in model.activation_sites()}
    assert all(bool((affine.scale > 0).all() and torch.isfinite(affine.scale).all()) for affine in found.values())
    assert all(torch.equal(found[name].zero_point, start[name].zero_point) for name in start)
    assert all(facts["error"] <= facts["error_before"] for facts in report.values())
    changed = sum(not torch.equal(found[name].scale, start[name].scale) for name in start)
    if method.lr < 1:
        assert changed > len(start) // 2
    if method.inputs == "float":
        # The reported errors are those of the model as it is now.
        for unit in Walk(model, noise, 8, run.store(), quantized=False):
            args, kwargs, (target,) = unit.minibatch(FLOAT, torch.arange(8))
            with torch.no_grad():
                out = unit.module(*args, **kwargs)
            error = float((out - target).abs().pow(method.power).mean())
            assert error == pytest.approx(report[unit.path]["error"], rel=1e-3), unit.path


def test_a_16_bit_softmax_is_not_learned(unet_model: Callable[..., QuantModel], noise: Trajectory, run: Run) -> None:
    model = ranged(unet_model(), noise, run)
    before = {n: v.clone() for n, v in model.module.state_dict().items()}
    LearnedSteps(iterations=2, batch=4, lr=0.1, walk_batch=8, skip_bits=8).apply(model, noise, run)
    assert all(torch.equal(v, before[n]) for n, v in model.module.state_dict().items())


def test_weight_only_models_have_nothing_to_learn(
    joining: Callable[[], QuantModel], vectors: Trajectory, run: Run
) -> None:
    model = joining()
    model.layer("layer").site_specs = {}
    for method in (RANGES, LearnedSteps(iterations=1)):
        report = method.apply(model, vectors, run)
        assert report.layers == {}
        assert "weights only" in report.notes[0]


@pytest.mark.parametrize("segments", [(12,), (8, 4)])
def test_a_learned_weight_starts_as_the_layer_and_moves_with_its_steps(
    joining: Callable[[], QuantModel], vectors: Trajectory, run: Run, segments: tuple[int, ...]
) -> None:
    model = joining()
    model.assign("layer", replace(model.plan.quantized()["layer"], segments=segments))
    Nearest().apply(model, vectors, run)
    layer = model.layer("layer")
    learned = LearnedWeight(layer)
    start = layer.dequantized_weight()
    assert torch.equal(learned.weight(), start)
    assert learned.theta.shape == (len(segments), 8)
    with torch.no_grad():
        learned.theta[-1, 3] = 0.5
    changed = learned.weight().detach() / start
    factor = torch.ones(8, 12)
    factor[3, 12 - segments[-1] :] = torch.tensor(0.5).exp()
    where = start != 0
    assert torch.allclose(changed[where], factor[where])
    learned.weight().sum().backward()
    rows = start[:, 12 - segments[-1] :].sum(1)
    rows[3] *= torch.tensor(0.5).exp()
    # d/d theta of a step is what the step makes.
    assert torch.allclose(learned.theta.grad[-1], rows, rtol=1e-4, atol=1e-5)


def test_weight_steps_and_biases_are_learned_and_written(
    unet_model: Callable[..., QuantModel], noise: Trajectory, run: Run
) -> None:
    model = ranged(unet_model(), noise, run)
    paths = list(model.plan.quantized())
    layers = [model.layer(path) for path in paths]
    before = [(layer.codes(), layer.weight_affine(), layer.bias) for layer in layers]
    kept = {path: bias.clone() for path, bias in model.biases.items() if bias is not None}
    method = LearnedSteps(iterations=6, batch=8, lr=0.01, walk_batch=8, inputs="quantized", weights=True)
    report = method.apply(model, noise, run).layers
    assert all(facts["error"] <= facts["error_before"] for facts in report.values())
    assert all(torch.equal(layer.codes(), codes) for layer, (codes, _, _) in zip(layers, before, strict=True))
    assert all(torch.equal(model.biases[path], bias) for path, bias in kept.items()), "the float model has changed"
    scales = [
        not torch.equal(layer.weight_affine().scale, a.scale) for layer, (_, a, _) in zip(layers, before, strict=True)
    ]
    biases = [not torch.equal(layer.bias, b) for layer, (_, _, b) in zip(layers, before, strict=True) if b is not None]
    assert sum(scales) > len(scales) / 2
    assert sum(biases) > len(biases) / 2
    assert not any(
        layer.weight_trial or layer.taps or (layer.bias is not None and layer.bias.requires_grad) for layer in layers
    )
    plain = ranged(unet_model(), noise, run)
    replace(method, weights=False).apply(plain, noise, run)
    assert all(
        torch.equal(plain.layer(p).weight_affine().scale, a.scale) for p, (_, a, _) in zip(paths, before, strict=True)
    )
