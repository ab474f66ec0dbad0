"""Rounding while loading: the same model as rounding afterwards, with no float weight left, saved as any artifact is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, PipelineQuantizationConfig, UNet2DConditionModel
from tests.stable_diffusion import tiny_stable_diffusion

import halftone
from halftone.artifact import described, load_pipeline, save_pipeline
from halftone.foundation.errors import ConfigError, MatchError
from halftone.nn import QuantizedLayer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("on-load")
    return save_pipeline(tiny_stable_diffusion(place / "tokenizer"), place / "float")


def draw(pipe: DiffusionPipeline) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    random = torch.Generator().manual_seed(0)
    return pipe("red circle", num_inference_steps=2, output_type="np", generator=random).images


@pytest.mark.parametrize("recipe", ["rtn-w8a32", "rtn-w4a32"])
def test_it_is_rounding_afterwards(folder: Path, recipe: str, tmp_path: Path) -> None:
    config = PipelineQuantizationConfig(quant_mapping={"unet": halftone.HalftoneConfig(recipe)})
    pipe = DiffusionPipeline.from_pretrained(folder, quantization_config=config)
    later = load_pipeline(folder)
    halftone.quantize(later, recipe, steps=2, each={"prompt": ["a"]}, overrides=["calibration.samples=2"])
    wanted, found = later.unet.state_dict(), pipe.unet.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())
    assert described(pipe.unet).recipe["name"] == recipe
    images = draw(pipe)
    again = load_pipeline(save_pipeline(pipe, tmp_path / "out"))
    assert np.array_equal(draw(again), images)
    assert sum(isinstance(layer, QuantizedLayer) for layer in again.unet.modules()) > 10


def test_no_float_weight_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []
    hold = QuantizedLayer.hold

    def watched(self: QuantizedLayer, *given: object) -> None:
        held.append(self.weight.is_meta)
        hold(self, *given)

    monkeypatch.setattr(QuantizedLayer, "hold", watched)
    unet = UNet2DConditionModel.from_pretrained(
        folder / "unet", quantization_config=halftone.HalftoneConfig("rtn-w8a32")
    )
    assert held
    assert all(held)
    layers = [layer for layer in unet.modules() if isinstance(layer, QuantizedLayer)]
    assert all(layer.weight.dtype == torch.uint8 for layer in layers)


def test_several_components_and_another_dtype(folder: Path) -> None:
    mapping = {"unet": halftone.HalftoneConfig("rtn-w4a32"), "vae": halftone.HalftoneConfig("rtn-w8a32")}
    config = PipelineQuantizationConfig(quant_mapping=mapping)
    pipe = load_pipeline(folder, quantization_config=config, dtype=torch.bfloat16)
    for component in (pipe.unet, pipe.vae):
        layer = next(layer for layer in component.modules() if isinstance(layer, QuantizedLayer))
        assert layer.weight_scale.dtype == torch.float32
        assert layer.weight.dtype == torch.uint8
    assert pipe.unet.dtype == torch.bfloat16
    assert np.isfinite(draw(pipe)).all()


def test_diffusers_makes_the_config_itself(folder: Path) -> None:
    by_name = PipelineQuantizationConfig(
        quant_backend="halftone", quant_kwargs={"recipe": "rtn-w8a32"}, components_to_quantize=["unet"]
    )
    pipe = DiffusionPipeline.from_pretrained(folder, quantization_config=by_name)
    given = PipelineQuantizationConfig(quant_mapping={"unet": halftone.HalftoneConfig("rtn-w8a32")})
    assert np.array_equal(draw(pipe), draw(DiffusionPipeline.from_pretrained(folder, quantization_config=given)))
    assert described(pipe.unet).recipe["name"] == "rtn-w8a32"


def test_an_autoencoder_keeps_its_own_file(folder: Path, tmp_path: Path) -> None:
    vae = AutoencoderKL.from_pretrained(folder / "vae", quantization_config=halftone.HalftoneConfig("rtn-w8a32"))
    vae.save_pretrained(tmp_path / "vae")
    again = AutoencoderKL.from_pretrained(tmp_path / "vae")
    latents = torch.randn(1, 4, 4, 4)
    assert torch.equal(again.decode(latents).sample, vae.decode(latents).sample)


@pytest.mark.parametrize("recipe", ["rtn-w4a8", "gptq-w4a32", "q-diffusion-w4a8"])
def test_recipes_that_calibrate_are_refused(recipe: str) -> None:
    with pytest.raises(ConfigError, match=r"weights only, rounded to nearest.*halftone\.quantize"):
        halftone.HalftoneConfig(recipe)


def test_what_the_model_does_not_have_is_an_error(folder: Path) -> None:
    config = halftone.HalftoneConfig("rtn-w8a32", overrides=["policy.1.optional=false", "policy.1.roles=patch_embed"])
    with pytest.raises(MatchError, match="patch_embed"):
        UNet2DConditionModel.from_pretrained(folder / "unet", quantization_config=config)


def test_a_model_that_is_quantized_already_stays_what_it_is(folder: Path, tmp_path: Path) -> None:
    given = halftone.HalftoneConfig("rtn-w4a32")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", quantization_config=given)
    unet.save_pretrained(tmp_path / "unet")
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        again = UNet2DConditionModel.from_pretrained(
            tmp_path / "unet", quantization_config=halftone.HalftoneConfig("rtn-w8a32")
        )
    assert described(again).recipe["name"] == "rtn-w4a32"
