"""PEFT adapters on quantized layers: added, scaled, disabled and removed as on a float model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

from halftone.foundation.errors import OutputError
from halftone.nn import QuantConv2d

peft = pytest.importorskip("peft")
Call = Callable[[nn.Module], torch.Tensor]
TARGETS = ["to_q", "to_v", "conv1", "conv_shortcut"]


def lora() -> "peft.LoraConfig":
    return peft.LoraConfig(r=2, lora_alpha=2, target_modules=TARGETS, init_lora_weights=False)


def test_add_scale_disable_remove(conditional_unet: UNet2DConditionModel, call: Call) -> None:
    before = call(conditional_unet)
    conditional_unet.add_adapter(lora(), "style")
    wrapped = [module for module in conditional_unet.modules() if hasattr(module, "base_layer")]
    assert any(isinstance(module.base_layer, QuantConv2d) for module in wrapped)
    full = call(conditional_unet)
    assert not torch.equal(full, before)
    conditional_unet.set_adapters("style", 0.5)
    assert not torch.equal(call(conditional_unet), full)
    conditional_unet.set_adapters("style", 0.0)
    assert torch.equal(call(conditional_unet), before)
    conditional_unet.set_adapters("style", 1.0)
    assert torch.equal(call(conditional_unet), full)
    conditional_unet.disable_adapters()
    assert torch.equal(call(conditional_unet), before)
    conditional_unet.enable_adapters()
    conditional_unet.delete_adapters("style")
    conditional_unet.unload_lora()
    assert torch.equal(call(conditional_unet), before)


def test_gradients_reach_the_adapters(conditional_unet: UNet2DConditionModel) -> None:
    conditional_unet.add_adapter(lora())
    sample, context = torch.randn(1, 1, 8, 8), torch.randn(1, 3, 16)
    conditional_unet(sample, torch.tensor([5]), context).sample.square().mean().backward()
    grads = [p.grad for name, p in conditional_unet.named_parameters() if "lora_" in name]
    assert grads and any(grad is not None and grad.abs().sum() > 0 for grad in grads)


def test_a_loaded_model_takes_adapters(conditional_unet: UNet2DConditionModel, tmp_path: Path, call: Call) -> None:
    conditional_unet.save_pretrained(tmp_path / "unet")
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "unet", torch_dtype=torch.bfloat16)
    before = call(loaded)
    loaded.add_adapter(lora())
    assert not torch.equal(call(loaded), before)


def test_saving_with_adapters_is_refused(conditional_unet: UNet2DConditionModel, tmp_path: Path) -> None:
    conditional_unet.add_adapter(lora())
    with pytest.raises(OutputError, match="adapters"):
        conditional_unet.save_pretrained(tmp_path / "unet")
    assert not (tmp_path / "unet").exists()


def test_injection_into_a_model_without_adapter_support(unet: UNet2DModel, call: Call) -> None:
    before = call(unet)
    peft.inject_adapter_in_model(lora(), unet)
    assert not torch.equal(call(unet), before)
