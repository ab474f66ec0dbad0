"""What ships of the zoo: small enough, whole, and what its card says."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
)
from PIL import Image
from safetensors import safe_open

import halftone
from halftone.artifact import load_outline, load_pipeline
from halftone.cli import zoo_emoji
from halftone.evaluate.alignment import alignment
from halftone.evaluate.picture_features import latent_features
from halftone.evaluate.sample import sample
from halftone.nn.layers import quantized_layers
from halftone.zoo.catalog import CATALOG, entry
from halftone.zoo.emoji_controlnet import masks, overlap, placed, places
from halftone.zoo.emoji_style_lora import style_share

SHIPPED = [each.name for each in CATALOG if each.installed]
KNOWN = ("red heart", "hot pepper", "crying cat", "grinning face", "pizza", "rose", "house", "key")
there = pytest.mark.skipif(not entry("emoji-sd").installed, reason="its weights do not ship")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_model_is_small_and_holds_nothing_that_is_executed(name: str) -> None:
    files = [path for path in entry(name).path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 48e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".png", ".txt"}


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    loaded = load_pipeline(entry("emoji-sd").path, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@there
def test_the_card_is_what_its_facts_say() -> None:
    place = entry("emoji-sd").path
    card = json.loads((place / "card.json").read_text())
    assert (place / "README.md").read_text() == zoo_emoji._readme(card)
    assert {row["features"] for row in card["alignment"]} >= {"emoji-sd latents"}
    assert all(row["prompts"] == 200 for row in card["alignment"])


@there
@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize(
    "kind",
    [PNDMScheduler, DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler],
    ids=lambda k: k.__name__,
)
def test_every_sampler_draws_what_the_prompt_names(pipe: StableDiffusionPipeline, kind: type) -> None:
    """Of eight common concepts most are recognised among 1657: a sampler that is told the wrong thing gets none."""
    pipe.scheduler = kind.from_config(pipe.scheduler.config)  # type: ignore[attr-defined]
    drawn = sample(pipe, len(KNOWN), 20, 0, len(KNOWN), each={"prompt": list(KNOWN)}, guidance_scale=5.0)
    with safe_open(entry("emoji-sd").path / "alignment.safetensors", "np") as stored:
        concepts = json.loads(stored.metadata()["concepts"])
        captions = json.loads(stored.metadata()["captions"])
        features = stored.get_tensor("features").astype("float64")
    wanted = [concepts[captions.index(text)] for text in KNOWN]
    found = alignment("own", [latent_features(pipe.vae)(drawn.images)], wanted, features, concepts)
    assert found.top5 >= 0.5


@there
def test_a_plan_knows_what_else_the_pipeline_loads(pipe: StableDiffusionPipeline) -> None:
    found = load_outline(entry("emoji-sd").path)
    beside = sum(4 * parameter.numel() for part in (pipe.vae, pipe.text_encoder) for parameter in part.parameters())
    assert found.others == pytest.approx(beside, rel=1e-3) and found.latents == 16
    decoder = load_outline(entry("emoji-sd").path, "vae")
    assert decoder.latents == 16 and not decoder.is_denoiser and not decoder.every_step


@there
def test_a_plan_counts_weights_once_and_reads_no_damaged_ones(tmp_path: Path) -> None:
    wanted, copy = load_outline(entry("emoji-sd").path).others, tmp_path / "copy"
    shutil.copytree(entry("emoji-sd").path, copy)
    file = copy / "vae/diffusion_pytorch_model.safetensors"
    shutil.copy(file, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert load_outline(copy).others == wanted
    file.write_bytes(b"half a download")
    assert load_outline(copy).others is None


def loaded(quantized: bool) -> StableDiffusionPipeline:
    """Return the model, float or with 8-bit weights and inputs after nearest rounding."""
    pipe = load_pipeline(entry("emoji-sd").path, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if quantized:
        few = ["calibration.samples=16", "calibration.batch=8"]
        halftone.quantize(pipe, "rtn-w8a8", steps=4, seed=0, budget="demo", overrides=few)
        assert next(quantized_layers(pipe.unet), None) is not None
    return pipe


def drawn_with(pipe: StableDiffusionPipeline, scale: float) -> torch.Tensor:
    """Return pictures of the eight concepts with the shipped LoRA at a strength, ``[8, 3, 64, 64]``."""
    pipe.set_adapters("style", adapter_weights=scale)
    arguments = {"each": {"prompt": list(KNOWN)}, "guidance_scale": 5.0}
    return torch.from_numpy(sample(pipe, len(KNOWN), 12, 0, len(KNOWN), **arguments).images)


@pytest.mark.skipif(not entry("emoji-style-lora").installed, reason="its weights do not ship")
@pytest.mark.filterwarnings("ignore:__array__ implementation", "ignore:.*an input that calibration did not see")
@pytest.mark.parametrize("quantized", [False, True], ids=["float", "quantized"])
def test_the_shipped_lora_prints_in_one_ink(quantized: bool) -> None:
    pipe = loaded(quantized)
    pipe.load_lora_weights(str(entry("emoji-style-lora").path), adapter_name="style")
    plain, half, whole = (style_share(drawn_with(pipe, scale)) for scale in (0.0, 0.5, 1.0))
    assert whole > 0.5 > plain and whole > half > plain


@pytest.mark.filterwarnings("ignore:__array__ implementation", "ignore:.*an input that calibration did not see")
@pytest.mark.parametrize("quantized", [False, True], ids=["float", "quantized"])
def test_the_shipped_controlnet_fills_the_mask(quantized: bool) -> None:
    pipe = loaded(quantized)
    how = {"each": {"prompt": list(KNOWN)}, "guidance_scale": 5.0}
    free = torch.from_numpy(sample(pipe, len(KNOWN), 12, 0, len(KNOWN), **how).images)
    wanted = masks(placed(free, places(len(free), torch.Generator().manual_seed(1))))
    net = ControlNetModel.from_pretrained(entry("emoji-controlnet").path).float().eval()
    guided = StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=net)
    how["each"]["image"] = [to_pil_image(each) for each in wanted]
    held = torch.from_numpy(sample(guided, len(KNOWN), 12, 0, len(KNOWN), **how).images)
    assert overlap(held, wanted) > overlap(free, wanted) + 0.05


def to_pil_image(picture: torch.Tensor) -> Image.Image:
    """Return a picture ``[3, S, S]`` in [0, 1] as Pillow has it."""
    return Image.fromarray((picture.permute(1, 2, 0) * 255).byte().numpy())
