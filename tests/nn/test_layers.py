"""Layers that can hold codes: in the float state they are nn.Linear and nn.Conv2d; quantized, they are their codes.

Laws held here: a sample's result does not depend on its batch neighbours; a split with equal scales is no split; scales are never
rounded by a cast.
"""

import copy
import pickle
from typing import Any

import pytest
import torch
from tests.comparison import sqnr
from torch import nn

from halftone.formats import Affine, fake_quantize, quantize
from halftone.formats.segments import along_input, along_weight
from halftone.foundation.errors import ConfigError
from halftone.kernels.native import product
from halftone.kernels.select import engines
from halftone.nn import QuantConv2d, QuantizedLayer, QuantLinear, Scheme
from halftone.nn.layers import quantized_layers
from halftone.nn.running import set_engine, set_weights
from halftone.nn.sites import sites
from halftone.quant import QuantSpec
from halftone.quant.weights import weight_affine

CONVS: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "1x1": {"kernel_size": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "grouped": {"kernel_size": 3, "groups": 2},
    "dilated": {"kernel_size": (3, 1), "dilation": 2, "padding": (2, 0)},
    "reflecting": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "without bias": {"kernel_size": 3, "bias": False},
}
W4 = QuantSpec("uint4", "channel")
SCHEMES = {
    "w4a32": Scheme(W4),
    "w4a8": Scheme(W4, QuantSpec("uint8")),
    "w3a8": Scheme(QuantSpec("uint3", "channel"), QuantSpec("uint8")),
    "w8a8 symmetric": Scheme(QuantSpec("uint8", "channel", "symmetric"), QuantSpec("uint8")),
    "signed": Scheme(QuantSpec("int4", "channel"), QuantSpec("int8")),
    "split": Scheme(W4, QuantSpec("uint8"), (2, 4)),
}


def layer(kind: str) -> QuantizedLayer:
    """Return a float layer of 6 inputs and 8 outputs: a linear, or the convolution called ``kind``."""
    return QuantLinear(6, 8) if kind == "linear" else QuantConv2d(6, 8, **CONVS[kind])


def data(kind: str, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 5, 6) if kind == "linear" else torch.randn(batch, 6, 7, 9)


def hold(layer: QuantizedLayer, scheme: Scheme) -> tuple[torch.Tensor, Affine]:
    """Round the layer to nearest under ``scheme``; return the codes and the affine."""
    weight = layer.weight.detach()
    segments = scheme.segments or (weight.shape[1],)
    affine = weight_affine(weight, segments, scheme.weight, "min_max")
    codes = quantize(weight, along_weight(affine, segments, weight.ndim), scheme.weight.number_format)
    layer.hold(codes, affine, scheme)
    if scheme.input is not None:
        low = torch.linspace(-3, -2, len(segments))
        layer.set_site_affine("input", scheme.input.affine(low, -low))
    return codes, affine


def cases() -> list[Any]:
    """Return pairs of layer and scheme that make sense together."""
    kinds = ["linear", *CONVS]
    return [
        pytest.param(kind, scheme, id=f"{kind}-{name}")
        for kind in kinds
        for name, scheme in SCHEMES.items()
        if not (scheme.segments and kind == "grouped")
    ]


@pytest.mark.parametrize("kind", ["linear", *CONVS])
def test_a_float_layer_is_the_plain_layer(kind: str) -> None:
    mine = layer(kind)
    plain = nn.Linear(6, 8) if kind == "linear" else nn.Conv2d(6, 8, **CONVS[kind])
    assert mine.state_dict().keys() == plain.state_dict().keys()
    mine.load_state_dict(plain.state_dict())
    x = data(kind).requires_grad_()
    y = x.detach().clone().requires_grad_()
    assert torch.equal(mine(x), plain(y))
    mine(x).square().sum().backward()
    plain(y).square().sum().backward()
    assert torch.equal(x.grad, y.grad)
    assert torch.equal(mine.weight.grad, plain.weight.grad)
    assert repr(mine).partition("(")[2] == repr(plain).partition("(")[2]


def test_adapters_can_construct_layers_like_their_base() -> None:
    """What PEFT does: ``type(base_layer)(in, r, bias=False)`` with the keywords of the plain classes."""
    down = type(layer("linear"))(6, 2, bias=False, device="cpu", dtype=torch.bfloat16)
    assert (down.weight.dtype, down.bias, down.scheme) == (torch.bfloat16, None, None)
    conv = type(layer("3x3"))(6, 2, (3, 3), (1, 1), (1, 1), bias=False)
    assert conv(torch.randn(1, 6, 4, 4)).shape == (1, 2, 4, 4)
    assert isinstance(down, nn.Linear)
    assert isinstance(conv, nn.Conv2d)


@pytest.mark.parametrize(("kind", "scheme"), cases())
def test_codes_come_back_and_define_the_layer(kind: str, scheme: Scheme) -> None:
    mine, x = layer(kind), data(kind)
    weight, bias = mine.weight.detach().clone(), mine.bias
    codes, affine = hold(mine, scheme)
    segments = scheme.segments or (weight.shape[1],)
    assert torch.equal(mine.codes(), codes)
    assert mine.weight.dtype == torch.uint8
    assert torch.equal(mine.weight_affine().scale, affine.scale)
    assert torch.equal(mine.weight_affine().zero_point, affine.zero_point)
    rounded = fake_quantize(weight, along_weight(affine, segments, weight.ndim), scheme.weight.number_format)
    assert torch.equal(mine.dequantized_weight(), rounded)
    assert not any(p.is_floating_point() for name, p in mine.named_parameters() if name != "bias")

    set_engine(mine, "simulate")
    if scheme.input is not None:
        site = along_input(mine.site_affine("input"), mine.segments, x.ndim, mine.channel_axis)
        x = fake_quantize(x, site, scheme.input.number_format)
    plain = nn.Linear(6, 8) if kind == "linear" else nn.Conv2d(6, 8, **CONVS[kind])
    plain.weight.data, plain.bias = rounded, bias
    assert torch.equal(mine(x), plain(x))


@pytest.mark.parametrize("name", ["w4a8", "signed", "split"])
def test_new_codes_leave_the_input_as_it_is(name: str) -> None:
    mine = layer("linear")
    codes, affine = hold(mine, SCHEMES[name])
    before = mine.site_affine("input")
    mine.hold(codes.flip(0), affine, SCHEMES[name])
    after = mine.site_affine("input")
    assert torch.equal(after.scale, before.scale)
    assert torch.equal(after.zero_point, before.zero_point)


@pytest.mark.parametrize("other", ["w4a32", "signed", "split"])
def test_codes_of_another_scheme_leave_the_input_float(other: str) -> None:
    mine = layer("linear")
    codes, affine = hold(mine, SCHEMES["w4a8"])
    split = Affine(affine.scale.repeat(2, 1), affine.zero_point.repeat(2, 1))
    mine.hold(codes, split if other == "split" else affine, SCHEMES[other])
    assert mine.site_affine("input") is None


@pytest.mark.parametrize(("kind", "scheme"), cases())
@pytest.mark.parametrize("engine", ["simulate", "auto"])
def test_a_sample_does_not_depend_on_its_neighbours(kind: str, scheme: Scheme, engine: str) -> None:
    mine, x = layer(kind), data(kind)
    hold(mine, scheme)
    set_engine(mine, engine)
    together = mine(x)
    loud = torch.cat([x[:1], 100 * x[1:]])
    for other in (mine(x[:1]), mine(loud)[:1], mine(x.flip(0)).flip(0)[:1]):
        difference = float((other - together[:1]).abs().max())
        assert difference <= 1e-5 * float(together.abs().max())


@pytest.mark.parametrize("kind", ["linear", "3x3", "1x1"])
def test_a_split_with_equal_scales_is_no_split(kind: str) -> None:
    whole, x = layer(kind), data(kind)
    halves = copy.deepcopy(whole)
    scheme = SCHEMES["w4a8"]
    codes, affine = hold(whole, scheme)
    site = whole.site_affine("input")
    halves.hold(
        codes, Affine(affine.scale.repeat(2, 1), affine.zero_point.repeat(2, 1)), Scheme(W4, scheme.input, (2, 4))
    )
    halves.set_site_affine("input", Affine(site.scale.repeat(2), site.zero_point.repeat(2)))
    for one in (whole, halves):
        set_engine(one, "simulate")
    assert torch.equal(halves.dequantized_weight(), whole.dequantized_weight())
    assert torch.equal(halves(x), whole(x))


@pytest.mark.parametrize("kind", ["linear", "3x3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_does_not_round_scales(kind: str, dtype: torch.dtype) -> None:
    mine = nn.Sequential(layer(kind))
    hold(mine[0], SCHEMES["w4a8"])
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    mine.to(dtype)
    for name, value in mine.state_dict().items():
        if name.endswith("bias"):
            assert value.dtype == dtype
        else:
            assert value.dtype == before[name].dtype
            assert torch.equal(value, before[name])
    set_engine(mine, "simulate")
    assert mine(data(kind).to(dtype)).dtype == dtype


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "after a call"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_equal_and_independent(scheme: Scheme, used: bool, copied: Any) -> None:
    mine, x = layer("3x3"), data("3x3")
    hold(mine, scheme)
    if used:
        mine(x)
    other = copied(mine)
    assert torch.equal(other(x), mine(x))
    expected = mine(x)
    other.weight_scale.mul_(2)
    other.refresh()
    assert torch.equal(mine(x), expected)
    assert not torch.equal(other(x), expected)


@pytest.mark.skipif(product.why_none() is not None, reason=f"no kernel holds codes alone: {product.why_none()}")
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copying_does_not_make_the_original_hold_its_codes_twice(copied: Any) -> None:
    mine, x = QuantConv2d(8, 8, 3), torch.randn(2, 8, 7, 9)
    hold(mine, Scheme(W4, QuantSpec("uint8")))
    set_weights(mine, "packed")  # which the kernel takes on machines with AMX too
    wanted = mine(x)
    assert mine._moved
    other = copied(mine)
    assert mine._moved and mine.weight.untyped_storage().nbytes() == 1
    assert not other._moved and other.weight.untyped_storage().nbytes() > 1
    assert torch.equal(other(x), wanted) and torch.equal(mine(x), wanted)


def test_new_numbers_take_effect_at_once() -> None:
    mine, x = layer("linear"), data("linear")
    hold(mine, SCHEMES["w4a8"])
    first = mine(x)
    mine.set_site_affine("input", Affine(torch.tensor([0.5]), torch.tensor([100.0])))
    assert not torch.equal(mine(x), first)
    mine.set_site_affine("input", None)
    assert mine.site_affine("input") is None
    plain = nn.functional.linear(x, mine.dequantized_weight(), mine.bias)
    assert torch.allclose(mine(x), plain, atol=1e-6)


def test_a_loader_finds_tensors_of_the_right_shapes() -> None:
    filled, empty = layer("3x3"), layer("3x3")
    hold(filled, SCHEMES["split"])
    empty.allocate(SCHEMES["split"])
    shapes = {name: (value.shape, value.dtype) for name, value in filled.state_dict().items()}
    assert {name: (value.shape, value.dtype) for name, value in empty.state_dict().items()} == shapes
    empty.load_state_dict(filled.state_dict())
    x = data("3x3")
    assert torch.equal(empty(x), filled(x))


def test_releasing_gives_the_float_layer_back() -> None:
    mine, x = layer("3x3"), data("3x3")
    weight, expected, keys = mine.weight.detach().clone(), mine(x), list(mine.state_dict())
    hold(mine, SCHEMES["w4a8"])
    mine.release(weight)
    assert torch.equal(mine(x), expected)
    assert list(mine.state_dict()) == keys
    assert list(quantized_layers(nn.Sequential(mine))) == []


def test_a_tap_takes_the_place_of_the_quantizer() -> None:
    mine, x = layer("linear"), data("linear")
    hold(mine, SCHEMES["w4a8"])
    seen: list[torch.Tensor] = []

    def tap(value: torch.Tensor) -> torch.Tensor:
        seen.append(value)
        return value * 2

    mine.taps["input"] = tap
    expected = nn.functional.linear(2 * x, mine.dequantized_weight(), mine.bias)
    assert torch.equal(mine(x), expected)
    assert len(seen) == 1
    assert torch.equal(seen[0], x)
    del mine.taps["input"]
    assert not torch.equal(mine(x), expected)


def test_an_identity_tap_on_a_float_layer_changes_nothing() -> None:
    mine, x = layer("3x3"), data("3x3")
    expected = mine(x)
    mine.taps["input"] = lambda value: value
    assert torch.equal(mine(x), expected)


def test_a_trial_weight_takes_the_place_of_the_codes_and_carries_gradients() -> None:
    mine, x = layer("linear"), data("linear")
    trial = mine.weight.detach().clone().requires_grad_()
    hold(mine, SCHEMES["w4a32"])
    mine.weight_trial = lambda: trial
    assert torch.equal(mine(x), nn.functional.linear(x, trial, mine.bias))
    mine(x).sum().backward()
    assert trial.grad is not None


def test_engines_are_set_on_every_quantized_layer() -> None:
    model = nn.Sequential(layer("linear"), nn.ReLU(), QuantLinear(8, 6), layer("linear"))
    hold(model[0], SCHEMES["w4a8"])
    hold(model[3], SCHEMES["w4a32"])
    model.requires_grad_(False)
    x = data("linear")
    results = {}
    for engine in engines():
        set_engine(model, engine)
        assert [child.engine for _, child in quantized_layers(model)] == [engine] * 2
        results[engine] = model(x)
        assert model[0].choice().kernel.engine in (engine, "simulate", "auto") or engine == "auto"
    for found in results.values():
        assert sqnr(results["simulate"], found) > 60
    set_engine(model, "warp")
    with pytest.raises(ConfigError, match="engine"):
        model(x)


def test_sites_are_those_with_a_spec() -> None:
    model = nn.Sequential(layer("linear"), layer("linear"), layer("linear"))
    hold(model[0], SCHEMES["w4a8"])
    hold(model[1], SCHEMES["w4a32"])
    assert [(path, site) for path, _, site in sites(model)] == [("0", "input")]
