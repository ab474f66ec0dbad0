"""Transformer blocks that write codes: diffusers' blocks up to rounding, and its own way whenever somebody looks inside."""

import copy
import pickle

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from halftone.kernels.native import product
from halftone.kernels.native.product import ProductWeight
from halftone.models.surgery import replace_layers
from halftone.nn import QuantizedLayer, QuantizedTransformer2DModel, QuantizedTransformerBlock, Scheme
from halftone.nn.attended import _Ways
from halftone.nn.attention import install_processor
from halftone.nn.running import set_engine, set_weights
from halftone.quant import QuantSpec

needs_product = pytest.mark.skipif(product.why_none() is not None, reason=f"no native product: {product.why_none()}")
W8, W4, A8 = QuantSpec("uint8", "channel", "symmetric"), QuantSpec("uint4", "channel"), QuantSpec("uint8")


def quantized(weight: QuantSpec = W8, linear: bool = False) -> Transformer2DModel:
    torch.manual_seed(0)
    model = Transformer2DModel(
        2, 16, 32, cross_attention_dim=24, norm_num_groups=8, num_layers=1, use_linear_projection=linear
    )
    model = model.eval().requires_grad_(False)
    paths = [name for name, child in model.named_modules() if type(child) in (nn.Linear, nn.Conv2d)]
    for layer in replace_layers(model, paths).values():
        layer.hold_nearest(layer.weight.data, Scheme(weight, A8), "min_max")
        layer.set_site_affine("input", A8.affine(torch.tensor([-4.0]), torch.tensor([4.0])))
    set_engine(model, "torch")
    return model


def inputs(
    dtype: torch.dtype = torch.float32, size: tuple[int, int, int] = (2, 6, 5)
) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    n, h, w = size
    x = torch.randn(n, 32, h, w, generator=draw).to(dtype).contiguous(memory_format=torch.channels_last)
    return x, torch.randn(n, 7, 24, generator=draw).to(dtype)


def run(model: Transformer2DModel, *given: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(*given, return_dict=False)[0]


def own_way(model: Transformer2DModel, *given: torch.Tensor) -> torch.Tensor:
    """Return what diffusers' classes compute with the same layers."""
    classes = {module: type(module) for module in model.modules()}
    for module in classes:
        if isinstance(module, QuantizedTransformerBlock):
            module.__class__ = BasicTransformerBlock
        elif isinstance(module, QuantizedTransformer2DModel):
            module.__class__ = Transformer2DModel
    try:
        return run(model, *given)
    finally:
        for module, kind in classes.items():
            module.__class__ = kind


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted.float()).square().mean().sqrt() / wanted.float().square().mean().sqrt())


def gates(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    seen: list[bool] = []
    real = ProductWeight.gated
    monkeypatch.setattr(ProductWeight, "gated", lambda *given: seen.append(True) or real(*given))
    return seen


@needs_product
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 6, 5), (8, 3, 9)], ids=str)
def test_it_computes_what_diffusers_computes(
    size: tuple[int, int, int], linear: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given, seen = quantized(linear=linear), inputs(size=size), gates(monkeypatch)
    kept = given[0].clone()
    found = run(model, *given)
    assert seen
    assert apart(found, own_way(model, *given)) < 2e-3
    assert torch.equal(given[0], kept), "inputs are not written on"
    set_engine(model, "simulate")
    assert apart(found, run(model, *given)) < 2e-3


@needs_product
def test_half_precision_between_layers_differs_by_its_own_precision() -> None:
    model, given = quantized().to(torch.bfloat16), inputs(torch.bfloat16)
    found = run(model, *given)
    assert found.dtype == torch.bfloat16
    exact = run(quantized(), *(each.float() for each in given))
    assert apart(found, exact) <= 1.1 * apart(own_way(model, *given), exact) + 1e-3


@needs_product
def test_whoever_looks_inside_sees_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given, fused = quantized(), inputs(), gates(monkeypatch)
    block, called = model.transformer_blocks[0], []
    for path in ("norm3", "ff", "ff.net.0", "ff.net.0.proj", "ff.net.1", "ff.net.2"):
        handle = block.get_submodule(path).register_forward_hook(lambda *_, path=path: called.append(path))
        fused.clear()
        out = run(model, *given)
        handle.remove()
        assert called[-1] == path
        assert not fused
        assert apart(out, own_way(model, *given)) < 2e-3
    for path in ("norm", "proj_in", "proj_out"):
        handle = model.get_submodule(path).register_forward_hook(lambda *_, path=path: called.append(path))
        run(model, *given)
        handle.remove()
        assert called[-1] == path
    tapped = []
    block.ff.net[2].taps["input"] = lambda x: tapped.append(x) or x
    run(model, *given)
    assert tapped


@needs_product
def test_adapters_are_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = quantized(), inputs()
    plain = run(model, *given)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["proj", "net.2"], init_lora_weights=False), model)
    seen = gates(monkeypatch)
    found = run(model, *given)
    assert not seen
    assert apart(found, own_way(model, *given)) < 2e-3
    assert apart(found, plain) > 0.01


@needs_product
@pytest.mark.parametrize(("target", "fed", "attends"), [("proj", False, 2), ("to_q", True, 0)])
def test_each_part_goes_its_own_way(target: str, fed: bool, attends: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter on the feed-forward alone leaves attention its norm and its sum, and the other way round."""
    model, given, seen, ways, real = quantized(), inputs(), gates(monkeypatch), [], _Ways.of
    for attn in (model.transformer_blocks[0].attn1, model.transformer_blocks[0].attn2):
        install_processor(attn)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=[target], init_lora_weights=False), model)
    monkeypatch.setattr(_Ways, "of", lambda *given: ways.append(real(*given)) or ways[-1])
    found = run(model, *given)
    assert bool(seen) == fed and sum(way is not None for way in ways) == attends
    assert apart(found, own_way(model, *given)) < 2e-3


@needs_product
def test_it_is_saved_copied_and_pickled() -> None:
    model, given = quantized(), inputs()
    wanted = run(model, *given)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(other, *given), wanted)


@needs_product
@pytest.mark.parametrize("weight", [W8, W4], ids=["8 bits", "4 bits"])
@pytest.mark.parametrize("weights", ["ready", "packed"])
def test_codes_are_held_once_and_given_back(weight: QuantSpec, weights: str) -> None:
    model, given = quantized(weight), inputs()
    wanted, numbers = run(model, *given), {name: value.clone() for name, value in model.state_dict().items()}
    set_weights(model, weights)
    assert torch.equal(run(model, *given), wanted), "to the bit, packed or not"
    layers = [layer for layer in model.modules() if isinstance(layer, QuantizedLayer)]
    assert all(layer.weight.untyped_storage().nbytes() == 1 for layer in layers)
    found = model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in numbers.items())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(other, *given), wanted)
    assert torch.equal(run(model, *given), wanted)
    model.load_state_dict(numbers)
    assert torch.equal(run(model, *given), wanted)
    layer = layers[0]
    layer.set_site_affine("input", A8.affine(torch.tensor([-1.0]), torch.tensor([1.0])))
    assert not torch.equal(run(model, *given), wanted), "what is prepared is made anew"
