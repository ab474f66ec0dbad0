"""One question tells whether a site is quantized, and kernels hear where its scale comes from."""

import pytest
import torch

from halftone.formats import Affine
from halftone.foundation.errors import KernelError
from halftone.nn import AttentionOperands, QuantConv2d, QuantizedLayer, QuantLinear, Scheme
from halftone.quant import QuantSpec

W8 = QuantSpec("uint8", "channel", "symmetric")


def held(layer: QuantizedLayer, spec: QuantSpec | None) -> QuantizedLayer:
    out = layer.weight_shape[0]
    codes = torch.full(layer.weight_shape, 130, dtype=torch.uint8)
    layer.hold(codes, Affine(torch.ones(1, out), torch.full((1, out), 128.0)), Scheme(W8, spec))
    return layer


@pytest.mark.parametrize("zero", ["asymmetric", "symmetric"])
def test_a_site_is_quantized_from_its_scale_on(zero: str) -> None:
    spec = QuantSpec("uint8", zero=zero)  # type: ignore[arg-type]
    layer = held(QuantLinear(4, 3), spec)
    assert not layer.is_quantized("input")
    layer.set_site_affine("input", spec.affine(torch.tensor([-1.0]), torch.tensor([1.0])))
    assert layer.is_quantized("input")
    layer.set_site_affine("input", None)
    assert not layer.is_quantized("input")
    assert layer.site_affine("input") is None


def test_the_operands_of_an_attention() -> None:
    operands = AttentionOperands({"q": QuantSpec(), "probs": QuantSpec(zero="none")})
    assert not operands.active
    operands.set_site_affine("probs", Affine(torch.tensor([0.1]), torch.tensor([0.0])))
    assert [site for site in operands.site_specs if operands.is_quantized(site)] == ["probs"]
    assert operands.active


@pytest.mark.parametrize("layer", [QuantLinear(4, 3), QuantConv2d(4, 3, 1)], ids=["linear", "convolution"])
def test_kernels_hear_where_the_scale_comes_from(layer: QuantizedLayer) -> None:
    assert held(layer, None).operation().input_scale == "static"
    assert held(layer, QuantSpec()).operation().input_scale == "static"
    reserved = QuantSpec()
    object.__setattr__(reserved, "scale", "dynamic")  # as a spec will be able to say
    held(layer, reserved).set_site_affine("input", Affine(torch.tensor([0.1]), torch.tensor([0.0])))
    assert layer.operation().input_scale == "dynamic"
    assert layer.choice().name == "reference"
    assert any("dynamic" in reason for reason in layer.choice().refused.values())
    with pytest.raises(KernelError, match="dynamic, not built yet"):
        layer(torch.zeros(1, 4) if layer.kind == "linear" else torch.zeros(1, 4, 2, 2))
