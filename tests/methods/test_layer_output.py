"""Ranges sought by the layer's output: an outlier that nothing hears is clipped, one that is heard is not."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from halftone.calibrate.trajectory import Trajectory
from halftone.methods.contract import Run
from halftone.methods.ranges.layer_output import LayerOutput
from halftone.methods.ranges.static import Static
from halftone.methods.rounding.nearest import Nearest
from halftone.models.quant_model import QuantModel

SEARCH = LayerOutput(samples=64, batch=16)


def ranged(model: QuantModel, data: Trajectory, run: Run) -> QuantModel:
    Nearest().apply(model, data, run)
    Static("min_max", samples=64, batch=16).apply(model, data, run)
    return model


def error(model: QuantModel, x: torch.Tensor) -> float:
    """Return the mean square error at the output that rounding the layer's input makes."""
    layer = model.layer("layer")
    with torch.no_grad():
        return float((layer(x) - layer.compute(x, layer.dequantized_weight())).square().mean())


@pytest.mark.parametrize("segments", [(12,), (8, 4)])
def test_the_reported_errors_are_those_at_the_output(
    joining: Callable[[], QuantModel], vectors: Trajectory, run: Run, segments: tuple[int, ...]
) -> None:
    model = joining()
    model.assign("layer", replace(model.plan.quantized()["layer"], segments=segments))
    ranged(model, vectors, run)
    before = error(model, vectors.args[0])
    facts = SEARCH.apply(model, vectors, run).layers["layer.input"]
    assert facts["error_before"] == pytest.approx(before, rel=1e-3)
    assert facts["error"] == pytest.approx(error(model, vectors.args[0]), rel=1e-3)
    assert facts["error"] <= facts["error_before"]


@pytest.mark.parametrize("segments", [(12,), (8, 4)])
def test_what_nothing_hears_is_clipped(
    joining: Callable[[], QuantModel], vectors: Trajectory, run: Run, segments: tuple[int, ...]
) -> None:
    """The values alone would not tell: their own mean square error grows by clipping the outlier."""
    model = joining()
    model.assign("layer", replace(model.plan.quantized()["layer"], segments=segments))
    x = vectors.args[0].clone()
    x[0, 2] = 60.0
    loud = replace(vectors, args=(x,))
    model.originals["layer"][:, 2] = 0.0
    ranged(model, loud, run)
    start = model.layer("layer").site_affine("input")
    facts = SEARCH.apply(model, loud, run).layers["layer.input"]
    found = model.layer("layer").site_affine("input")
    assert float(found.scale[0]) < 0.4 * float(start.scale[0])
    assert facts["error"] < 0.3 * facts["error_before"]
    if len(segments) > 1:
        assert float(found.scale[1]) > 0.5 * float(start.scale[1]), "each segment has its own range"


def test_a_heard_outlier_stays(joining: Callable[[], QuantModel], vectors: Trajectory, run: Run) -> None:
    x = vectors.args[0].clone()
    x[:, 2] += 60.0
    heard = replace(vectors, args=(x,))
    model = ranged(joining(), heard, run)
    start = model.layer("layer").site_affine("input")
    SEARCH.apply(model, heard, run)
    assert float(model.layer("layer").site_affine("input").scale[0]) > 0.8 * float(start.scale[0])


def test_calls_count_by_their_influence(joining: Callable[[], QuantModel], vectors: Trajectory, run: Run) -> None:
    x = vectors.args[0].clone()
    x[vectors.calls == 0] *= 30
    loud = replace(vectors, args=(x,))
    found = {}
    for call in (0, 7):
        influence = torch.full((8,), 1e-6)
        influence[call] = 8.0
        model = ranged(joining(), loud, run)
        SEARCH.apply(model, replace(loud, influence=influence), run)
        found[call] = float(model.layer("layer").site_affine("input").scale[0])
    assert found[7] < 0.3 * found[0]


def test_only_layers_of_few_bits_are_sought_and_no_tap_stays(
    unet_model: Callable[..., QuantModel], noise: Trajectory, run: Run
) -> None:
    model = unet_model()
    Nearest().apply(model, noise, run)
    Static("min_max", samples=8, batch=4).apply(model, noise, run)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    report = replace(SEARCH, samples=8, skip_bits=8).apply(model, noise, run)
    assert (report.layers, report.notes) == ({}, ["no layer's input is planned"])
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    report = replace(SEARCH, samples=8).apply(model, noise, run)
    assert set(report.layers) == {f"{path}.input" for path in model.plan.quantized()}
    assert all(facts["error"] <= facts["error_before"] for facts in report.layers.values())
    changed = {name for name, value in model.module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.endswith(("input_scale", "input_zero_point")) for name in changed)
    assert not any(owner.taps for _, owner, _ in model.activation_sites())


def test_a_grid_with_a_fixed_zero_moves_both_ends(
    joining: Callable[[], QuantModel], vectors: Trajectory, run: Run
) -> None:
    model = joining()
    scheme = model.plan.quantized()["layer"]
    model.assign("layer", replace(scheme, input=replace(scheme.input, zero="symmetric")))
    x = vectors.args[0].clone()
    x[0, 2] = 60.0
    loud = replace(vectors, args=(x,))
    model.originals["layer"][:, 2] = 0.0
    ranged(model, loud, run)
    facts = SEARCH.apply(model, loud, run).layers["layer.input"]
    assert facts["error"] < 0.3 * facts["error_before"]
