"""A quantized text-to-image pipeline is used like any other: made into others, edited with, adapted, controlled, rescheduled."""

import contextlib
import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from tests.stable_diffusion import (
    PROMPTS,
    draw,
    load_quietly,
    quantized,
    quantized_stable_diffusion,
    tiny_stable_diffusion,
    tiny_stable_diffusion_xl,
)

import halftone
from halftone.artifact import load_pipeline, save_pipeline
from halftone.foundation.errors import ConfigError
from halftone.nn import AttentionOperands, QuantizedLayer

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers' schedulers
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),  # a second adapter
]
RED = Image.new("RGB", (16, 16), (255, 0, 0))
MASK = Image.new("L", (16, 16), 255)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantized_stable_diffusion(tmp_path_factory.mktemp("stable-diffusion"))


@pytest.fixture
def pipe(folder: Path) -> StableDiffusionPipeline:
    return load_quietly(folder)


@pytest.fixture(scope="module")
def original(folder: Path) -> StableDiffusionPipeline:
    """The float pipeline that it was made from."""
    return tiny_stable_diffusion(folder.parent / "tokenizer")


def near(images: np.ndarray, wanted: np.ndarray, within: float = 0.05) -> bool:
    """Return whether pictures are the wanted ones, up to what 8 bits cost, and not pictures of anything else."""
    error, power = np.square(images - wanted).mean(), wanted.var()
    return bool(wanted.std() > 0.01 and error < within * power)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"negative_prompt": "blue"},
        {"guidance_scale": 1.0},
        {"prompt": ["red circle", "a far longer prompt about a blue square that waves"]},
        {"height": 32, "width": 24},
        {"num_images_per_prompt": 2},
    ],
    ids=str,
)
def test_text_to_image_in_every_way(
    pipe: StableDiffusionPipeline, original: StableDiffusionPipeline, how: dict
) -> None:
    prompt = how.get("prompt", "red circle")
    how = {name: value for name, value in how.items() if name != "prompt"}
    other_size = pytest.warns(halftone.TrajectoryWarning, match=r"sample \[4, 8, 6\] instead of \[4, 4, 4\]")
    with other_size if "height" in how else contextlib.nullcontext():
        images = draw(pipe, prompt, **how)
    assert images.shape[1:3] == (how.get("height", 16), how.get("width", 16))
    assert near(images, draw(original, prompt, **how))


@pytest.mark.parametrize("way", ["auto", "from_pipe", "from_pretrained"])
def test_image_to_image(
    pipe: StableDiffusionPipeline, original: StableDiffusionPipeline, folder: Path, way: str
) -> None:
    made = {
        "auto": lambda: AutoPipelineForImage2Image.from_pretrained(folder),
        "from_pipe": lambda: StableDiffusionImg2ImgPipeline.from_pipe(pipe),
        "from_pretrained": lambda: StableDiffusionImg2ImgPipeline.from_pretrained(folder),
    }[way]()
    assert quantized(made.unet) == quantized(pipe.unet) > 0
    weak, strong = (draw(made, image=RED, strength=s, num_inference_steps=4) for s in (0.3, 1.0))
    assert weak.shape == (1, 16, 16, 3)
    assert not np.array_equal(weak, strong)
    floats = StableDiffusionImg2ImgPipeline.from_pipe(original)
    for images, strength in ((weak, 0.3), (strong, 1.0)):
        assert near(images, draw(floats, image=RED, strength=strength, num_inference_steps=4))


def test_inpainting(folder: Path, pipe: StableDiffusionPipeline, original: StableDiffusionPipeline) -> None:
    how = {"image": RED, "mask_image": MASK, "height": 16, "width": 16}
    wanted = draw(AutoPipelineForInpainting.from_pipe(original), **how)
    for made in (AutoPipelineForInpainting.from_pretrained(folder), AutoPipelineForInpainting.from_pipe(pipe)):
        assert near(draw(made, **how), wanted)


def test_one_pipeline_from_another_keeps_every_number(pipe: StableDiffusionPipeline) -> None:
    before, images = {n: v.clone() for n, v in pipe.unet.state_dict().items()}, draw(pipe)
    other = StableDiffusionPipeline.from_pipe(StableDiffusionImg2ImgPipeline.from_pipe(pipe))
    assert all(torch.equal(value, before[name]) for name, value in other.unet.state_dict().items())
    assert np.array_equal(draw(other), images)


def test_saving_again_writes_the_same_bytes(folder: Path, pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    draw(pipe)
    again = save_pipeline(pipe, tmp_path / "again")
    for part in ("unet", "vae", "text_encoder", "scheduler"):
        for file in (folder / part).iterdir():
            assert file.read_bytes() == (again / part / file.name).read_bytes(), file.name


@pytest.mark.parametrize(
    "kind",
    [
        DDIMScheduler,
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
    ],
)
def test_other_samplers(pipe: StableDiffusionPipeline, folder: Path, kind: Any) -> None:
    original = tiny_stable_diffusion(folder.parent / "tokenizer")
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    original.scheduler = kind.from_config(original.scheduler.config)
    # The ancestral one begins far outside what calibration saw.
    within = 0.3 if kind is EulerAncestralDiscreteScheduler else 0.05
    assert near(draw(pipe, num_inference_steps=4), draw(original, num_inference_steps=4), within)


def test_offloading_between_components(pipe: StableDiffusionPipeline) -> None:
    images = draw(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    assert np.array_equal(draw(pipe), images)


def test_offloading_layer_by_layer(pipe: StableDiffusionPipeline) -> None:
    """What ``enable_sequential_cpu_offload`` does to a denoiser; of a whole pipeline it needs an accelerator."""
    images = draw(pipe)
    cpu_offload(pipe.unet, torch.device("cpu"))
    assert np.array_equal(draw(pipe), images)
    layers = [layer for layer in pipe.unet.modules() if isinstance(layer, QuantizedLayer) and layer.scheme is not None]
    assert layers and all(layer.weight.is_meta for layer in layers)
    assert all(layer._prepared is None for layer in layers), "what was made of the numbers left the device with them"


def test_device_maps(folder: Path, pipe: StableDiffusionPipeline) -> None:
    images = draw(pipe)
    mapped = StableDiffusionPipeline.from_pretrained(folder, device_map="cpu")
    assert np.array_equal(draw(mapped), images)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", device_map={"": "cpu"})
    assert all(torch.equal(value, pipe.unet.state_dict()[name]) for name, value in unet.state_dict().items())
    with pytest.raises(ConfigError, match="disk"):
        UNet2DConditionModel.from_pretrained(folder / "unet", device_map={"": "disk"})


def test_half_the_width(folder: Path) -> None:
    loaded = load_pipeline(folder, dtype=torch.bfloat16)
    assert loaded.unet.conv_in.bias.dtype == torch.bfloat16
    assert loaded.unet.mid_block.resnets[0].conv1.weight_scale.dtype == torch.float32
    assert np.isfinite(draw(loaded)).all()


def load_lora(pipe: StableDiffusionPipeline, folder: Path, seed: int, tmp_path: Path, name: str) -> None:
    """Load an adapter of the attention and the convolutions, with nothing at zero, from a file."""
    # Older versions of diffusers do not look for the file themselves when they are offline.
    place = lora(folder, seed, tmp_path)
    pipe.load_lora_weights(place, weight_name="pytorch_lora_weights.safetensors", adapter_name=name)


def lora(folder: Path, seed: int, tmp_path: Path) -> Path:
    """Write an adapter, and return its folder."""
    pipe = tiny_stable_diffusion(folder.parent / "tokenizer")
    targets = ["to_q", "to_v", "to_out.0", "conv1", "conv2"]
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets))
    torch.manual_seed(seed)
    for name, value in pipe.unet.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.3)
    place = tmp_path / f"lora-{seed}"
    StableDiffusionPipeline.save_lora_weights(place, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    return place


def test_adapters_are_loaded_mixed_scaled_disabled_and_deleted(
    folder: Path, pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    plain = draw(pipe)
    for seed in (1, 2):
        load_lora(pipe, folder, seed, tmp_path, f"style{seed}")
    images: dict[str, np.ndarray] = {}
    for name, styles, weights in (
        ("one", ["style1"], [1.0]),
        ("both", ["style1", "style2"], [0.7, 0.4]),
        ("none", ["style1"], [0.0]),
    ):
        pipe.set_adapters(styles, weights)
        images[name] = draw(pipe)
    assert not np.array_equal(images["one"], plain)
    assert not np.array_equal(images["both"], images["one"])
    assert np.array_equal(images["none"], plain)
    pipe.set_adapters(["style1"], [1.0])
    pipe.disable_lora()
    assert np.array_equal(draw(pipe), plain)
    pipe.enable_lora()
    pipe.delete_adapters("style2")
    assert np.array_equal(draw(pipe), images["one"])
    pipe.unload_lora_weights()
    assert np.array_equal(draw(pipe), plain)


@pytest.mark.parametrize("target", ["to_q", "to_v", "to_out.0", "conv1", "conv2", "net.0.proj"])
def test_an_adapter_does_to_a_quantized_layer_what_it_does_to_a_float_one(
    folder: Path, pipe: StableDiffusionPipeline, target: str
) -> None:
    """Each kind of layer alone, so that none can be left out, at several strengths, so that none can be scaled wrongly."""
    changes: list[dict[str, torch.Tensor]] = []
    for unet in (pipe.unet, tiny_stable_diffusion(folder.parent / "tokenizer").unet):
        torch.manual_seed(1)
        unet.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=[target], init_lora_weights=False), "style")
        wrapped = {path: module for path, module in unet.named_modules() if hasattr(module, "lora_A")}
        assert all(isinstance(module.base_layer, QuantizedLayer) == (unet is pipe.unet) for module in wrapped.values())
        changes.append({})
        for path, module in wrapped.items():
            base = module.base_layer
            shape = (2, base.in_channels, 4, 4) if target.startswith("conv") else (2, 5, base.in_features)
            x, answers = torch.randn(shape, generator=torch.Generator().manual_seed(3)), []
            for strength in (0.0, 0.5, 1.0):
                unet.set_adapters("style", strength)
                with torch.no_grad():
                    answers.append(module(x))
            changes[-1][path] = torch.stack(answers[1:]) - answers[0]
    quantized, floats = changes
    assert quantized.keys() == floats.keys() and quantized
    for path, change in quantized.items():
        torch.testing.assert_close(change, floats[path], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(2 * change[0], change[1], rtol=1e-3, atol=1e-4)
        assert change.norm() > 0.01


def test_fused_adapters_are_in_the_codes(folder: Path, pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    load_lora(pipe, folder, 1, tmp_path, "style")
    module = pipe.unet.mid_block.resnets[0].conv1
    down, up = module.lora_A["style"].weight.detach(), module.lora_B["style"].weight.detach()
    change = torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
    wanted = module.base_layer.dequantized_weight() + 0.5 * change
    moved = halftone.fuse_lora(pipe, lora_scale=0.5)
    layer = pipe.unet.mid_block.resnets[0].conv1
    assert isinstance(layer, QuantizedLayer)
    found = layer.dequantized_weight()
    assert float((found - wanted).norm() / wanted.norm()) == pytest.approx(moved["unet.mid_block.resnets.0.conv1"])
    assert 0 < max(moved.values()) < 0.01, "8 bits"
    assert len(moved) > 5
    images = draw(pipe)
    again = load_pipeline(save_pipeline(pipe, tmp_path / "fused"))
    assert np.array_equal(draw(again), images)


def test_fusing_what_cannot_be_fused(folder: Path, pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="LoRA adapters, got none"):
        halftone.fuse_lora(pipe)
    load_lora(pipe, folder, 1, tmp_path, "style")
    with pytest.raises(ConfigError, match="some of style, got stile"):
        halftone.fuse_lora(pipe, adapter_names=["stile"])
    codes = pipe.unet.mid_block.resnets[0].conv1.base_layer.weight.clone()
    with pytest.raises(ConfigError, match=r"halftone\.fuse_lora\(pipe\) adds in float"):
        pipe.fuse_lora()  # PEFT's own, which adds to codes
    assert torch.equal(pipe.unet.mid_block.resnets[0].conv1.base_layer.weight, codes)


def test_pefts_fusing_is_refused_where_there_is_something_to_fuse(
    folder: Path, pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    pipe.unet.fuse_lora()  # as where a LoRA is on the text encoder alone
    again = pickle.loads(pickle.dumps(copy.deepcopy(pipe.unet)))
    load_lora(pipe, folder, 1, tmp_path, "style")
    again.fuse_lora()  # a copy knows its own layers, not those of the model that it was made from
    for options in ({}, {"safe_fusing": True}):
        with pytest.raises(ConfigError, match=r"fuse_lora: .*halftone\.fuse_lora\(pipe\)"):
            pipe.unet.fuse_lora(**options)


def test_fusing_into_float_layers_is_a_sum(folder: Path, tmp_path: Path) -> None:
    pipe = tiny_stable_diffusion(folder.parent / "tokenizer")
    load_lora(pipe, folder, 1, tmp_path, "style")
    images = draw(pipe)
    assert halftone.fuse_lora(pipe) == {}
    np.testing.assert_allclose(draw(pipe), images, atol=1e-4)
    assert not any("lora" in name for name in pipe.unet.state_dict())


def test_a_stable_diffusion_xl_with_its_added_conditions(folder: Path, tmp_path: Path) -> None:
    pipe = tiny_stable_diffusion_xl(folder.parent / "tokenizer")
    pipe.set_progress_bar_config(disable=True)
    # The image's size is among what calibration sees; so is whatever attention is passed.
    given = "calibration.arguments={guidance_scale: 5.0, height: 16, width: 16, cross_attention_kwargs: {scale: 1.0}}"
    overrides = ["calibration.samples=8", given]
    result = halftone.quantize(pipe, "rtn-w8a8", steps=2, budget="demo", each={"prompt": PROMPTS}, overrides=overrides)
    reached = result.report["trajectory"]["reach"]
    assert any("text_embeds" in name for name in reached["inputs"]) and any(
        "time_ids" in name for name in reached["inputs"]
    )
    how = {"height": 16, "width": 16}
    images = draw(pipe, **how)
    again = load_pipeline(save_pipeline(pipe, tmp_path / "xl"))
    assert quantized(again.unet) and np.array_equal(draw(again, **how), images)


def test_probabilities_of_attention_may_have_16_bits(folder: Path) -> None:
    found = {}
    for bits in ("uint8", "uint16"):
        pipe = tiny_stable_diffusion(folder.parent / "tokenizer")
        overrides = ["calibration.samples=8", f"policy.0.operands.probs.format={bits}"]
        halftone.quantize(pipe, "rtn-w8a8", steps=2, budget="demo", each={"prompt": PROMPTS}, overrides=overrides)
        operands = [each for each in pipe.unet.modules() if isinstance(each, AttentionOperands)]
        assert operands and {each.site_specs["probs"].format for each in operands} == {bits}
        found[bits] = draw(pipe)
        refused = [reason for each in operands for reason in each.choice().refused.values()]
        assert any("probs format uint16" in reason for reason in refused) == (bits == "uint16")
    assert not np.array_equal(*found.values())
