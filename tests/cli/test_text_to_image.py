"""Text-to-image pipelines on the command line: guidance, adapters, and what was made for another model."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    ControlNetXSAdapter,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from tests.stable_diffusion import PROMPTS, tiny_stable_diffusion

import halftone
from halftone.cli import models
from halftone.cli.app import run
from halftone.foundation.errors import ArtifactError, ConfigError
from halftone.foundation.prompt_file import read_prompts
from halftone.models.controlnets import refuse_unfit_controlnets

from .conftest import Halftone
from .test_bad_input import refused

DRAW = ("generate", "--prompt", "red circle", "-n", 1, "--steps", 2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_stable_diffusion(folder / "tokenizer").save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def quantized(base: Path) -> Path:
    (base / "prompts.txt").write_text("\n".join(PROMPTS))
    how = ("--recipe", "rtn-w8a8", "--steps", "2", "--set", "calibration.samples=8", "--prompts", base / "prompts.txt")
    assert run([str(each) for each in ("quantize", base / "model", *how, "-o", base / "out")]) == 0
    return base / "out"


def adapter(unet: UNet2DConditionModel, folder: Path) -> Path:
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"]))
    torch.manual_seed(0)
    for name, value in unet.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.5)
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))
    return folder


def other_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return one that is twice as wide."""
    return UNet2DConditionModel.from_config({**unet.config, "block_out_channels": (16, 32)})


def test_options_reach_the_pipeline(halftone: Halftone, base: Path, quantized: Path, tmp_path: Path) -> None:
    place = adapter(tiny_stable_diffusion(base / "tokenizer").unet, tmp_path / "lora")
    (place / "pytorch_lora_weights.safetensors").rename(place / "style.safetensors")
    drawn = {}
    for name, options in {
        "plain": (),
        "unguided": ("--guidance", 1),
        "negative": ("--negative", "blue square"),
        "styled": ("--lora", place),
        "none": ("--lora", f"{place / 'style.safetensors'}=0"),
    }.items():
        done = halftone(*DRAW, quantized, *options, "-o", tmp_path / f"{name}.png")
        assert done.code == 0, done.err
        with Image.open(tmp_path / f"{name}.png") as picture:
            drawn[name] = np.asarray(picture).copy()
    for name in ("unguided", "negative", "styled"):
        assert not np.array_equal(drawn[name], drawn["plain"]), name
    assert np.array_equal(drawn["none"], drawn["plain"])


def test_an_adapter_of_another_model(halftone: Halftone, base: Path, quantized: Path, tmp_path: Path) -> None:
    unet = tiny_stable_diffusion(base / "tokenizer").unet
    wide = adapter(other_unet(unet), tmp_path / "wide")
    where = (*DRAW, quantized, "-o", tmp_path / "x.png", "--lora")
    refused(halftone, ["--lora", "made for this StableDiffusionPipeline", "size mismatch"], *where, wide)
    refused(halftone, ["a folder with one", "nothing there"], *where, tmp_path / "nowhere.safetensors")
    (tmp_path / "empty").mkdir()
    refused(halftone, ["0 of them"], *where, tmp_path / "empty")
    save_file({"text_model.lora_down.weight": torch.ones(2, 2)}, tmp_path / "foreign.safetensors")
    refused(halftone, ["made for this", "trained for another model"], *where, tmp_path / "foreign.safetensors")
    assert not (tmp_path / "x.png").exists()


def test_pipelines_that_take_none_of_it(halftone: Halftone, model: Path, tmp_path: Path) -> None:
    where = ("generate", model, "-n", 1, "--steps", 2, "-o", tmp_path / "x.png")
    refused(halftone, ["negative_prompt", "Leave it out"], *where, "--negative", "blue")
    refused(halftone, ["guidance_scale", "Leave it out"], *where, "--guidance", 3)
    (tmp_path / "some.safetensors").write_bytes(b"")
    refused(halftone, ["a pipeline that takes adapters"], *where, "--lora", tmp_path / "some.safetensors")


def test_a_controlnet_of_another_width(base: Path, tmp_path: Path) -> None:
    pipe = tiny_stable_diffusion(base / "tokenizer")
    options = {"conditioning_channels": 3, "conditioning_embedding_out_channels": (4, 8, 8)}
    net = ControlNetModel.from_unet(other_unet(pipe.unet), load_weights_from_unet=False, **options)
    made = StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=net)
    words = r"controlnet: block_out_channels: expected \[8, 16\], as the unet has it, got \[16, 32\]"
    with pytest.raises(ConfigError, match=words):
        halftone.quantize(made, "rtn-w8a8", each={"prompt": PROMPTS})
    made.save_pretrained(tmp_path / "made")
    with pytest.raises(ConfigError, match=words):
        halftone.artifact.load_pipeline(tmp_path / "made")


def test_the_plan_of_another_component_comes_true(
    halftone: Halftone, base: Path, quantized: Path, tmp_path: Path
) -> None:
    parts = {"vae": "rtn-w8a8", "text_encoder": "rtn-w8a32"}
    also = [word for part in parts.items() for word in ("--also", "=".join(part))]
    how = ("--recipe", "rtn-w8a8", "--steps", "2", "--set", "calibration.samples=8", "--prompts", base / "prompts.txt")
    done = halftone("quantize", base / "model", *how, *also, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    same = ("path", "role", "inferred", "kind", "shape", "weight", "input", "bytes")
    for part, recipe in parts.items():
        planned = halftone("inspect", "--plan", base / "model", "--component", part, "--recipe", recipe, "--json").json
        became = halftone("inspect", tmp_path / "out", "--component", part, "--no-agreement", "--json").json
        assert planned["sizes"] == became["sizes"], part
        for layer in became["layers"]:
            # What stays float has a dtype, which a plan does not know.
            layer |= {key: "float" for key in ("weight", "input") if layer[key] == "float32"}
        assert [[a[key] for key in same] for a in planned["layers"]] == [
            [b[key] for key in same] for b in became["layers"]
        ]
    reasons = {
        layer["path"]: layer["reason"]
        for layer in halftone("inspect", "--plan", base / "model", "--component", "vae", "--json").json["layers"]
    }
    assert reasons["post_quant_conv"] == "it lies between encoder and decoder"
    assert reasons["encoder.conv_in"] == ""


def test_a_controlnet_xs_is_narrower_on_purpose(base: Path) -> None:
    unet = tiny_stable_diffusion(base / "tokenizer").unet
    for widths, fits in (((8, 16), True), ((16, 32), False)):
        net = ControlNetXSAdapter(
            conditioning_embedding_out_channels=(4, 8),
            block_out_channels=(4, 8),
            base_block_out_channels=widths,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            num_attention_heads=1,
            cross_attention_dim=unet.config.cross_attention_dim,
            max_norm_num_groups=4,
        )
        beside: Any = SimpleNamespace(components={"unet": unet, "controlnet": net})
        with (
            nullcontext()
            if fits
            else pytest.raises(ConfigError, match=r"controlnet: block_out_channels: expected \[8, 16\]")
        ):
            refuse_unfit_controlnets(beside)


def test_plans_of_components_that_are_none(halftone: Halftone, base: Path) -> None:
    plan = ("inspect", "--plan", base / "model", "--component")
    refused(halftone, ["a component called 'vea'", "'vae'"], *plan, "vea")
    refused(halftone, ["or a text encoder", "a CLIPTokenizer of transformers"], *plan, "tokenizer")
    refused(halftone, ["a model class of diffusers", "PNDMScheduler"], *plan, "scheduler")
    alone = base / "model" / "unet"
    refused(halftone, ["--component", "Leave --component out"], "inspect", "--plan", alone, "--component", "vae")


def test_two_components_of_different_versions(quantized: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(quantized, tmp_path / "copy"))
    config = json.loads((folder / "unet/config.json").read_text())
    assert "version" in config["quantization_config"]
    shutil.copytree(folder / "unet", folder / "controlnet")
    index = json.loads((folder / "model_index.json").read_text())
    index["controlnet"] = ["diffusers", "UNet2DConditionModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    config["quantization_config"]["version"] = 99
    (folder / "controlnet/config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"controlnet.*99"):
        halftone.artifact.load_pipeline(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["at least one prompt"]),
        (b"\n \n\n", ["at least one prompt"]),
        (b"\xff\xfe\x00a red circle", ["a text file in UTF-8"]),
        (b"a\0 \0c\0a\0t\0", ["a text file in UTF-8", "UTF-16?"]),
        (b"a " * 6000, ["prompts of at most 10000 characters"]),
    ],
    ids=["empty", "blank", "not UTF-8", "UTF-16", "a book on one line"],
)
def test_files_that_are_no_prompts(
    halftone: Halftone, quantized: Path, tmp_path: Path, content: bytes, words: list[str]
) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    where = ("--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "x")
    refused(halftone, words, "quantize", quantized, "--recipe", "rtn-w8a8", *where)
    where = ("--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "x.png")
    refused(halftone, words, "generate", quantized, *where)


def test_the_mark_that_windows_puts_first_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbfa red circle\r\na hand\r\n")
    assert read_prompts(tmp_path / "prompts.txt") == ["a red circle", "a hand"]


def test_an_enormous_file_is_not_read(
    halftone: Halftone, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("halftone.foundation.prompt_file._LARGEST_FILE", 20)
    (tmp_path / "prompts.txt").write_text("a red circle and a blue square\n")
    where = ("--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "x.png")
    refused(halftone, ["a list of prompts, at most"], "generate", quantized, *where)


def test_prompts_that_are_cut_off_are_named(halftone: Halftone, quantized: Path, base: Path, tmp_path: Path) -> None:
    long = "a red circle " * 60
    (tmp_path / "prompts.txt").write_text(f"a red circle\n{long}\n")
    how = ("--prompts", tmp_path / "prompts.txt", "-n", 2, "--steps", 2, "-o", tmp_path / "x.png")
    done = halftone("generate", quantized, *how)
    assert done.code == 0 and "1 of 2 prompts are longer than the" in done.err and "'a red circle a red" in done.err
    negative = halftone(*DRAW, quantized, "--negative", long, "-o", tmp_path / "z.png")
    assert negative.code == 0 and "1 of 2 prompts are longer than the" in negative.err
    short = halftone(*DRAW, quantized, "-o", tmp_path / "y.png")
    assert short.code == 0 and "longer than the" not in short.err


def test_without_prompts_the_usual_ones_calibrate(halftone: Halftone, base: Path, tmp_path: Path) -> None:
    how = ("--recipe", "rtn-w8a8", "--steps", 2, "--set", "calibration.samples=8")
    done = halftone("quantize", base / "model", *how, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert "the 100 prompts that come with Halftone" in done.err
    assert done.json["report"]["trajectory"]["conditions"]["prompt"].startswith("100 values")
    own = shutil.copytree(base / "model", tmp_path / "model")
    (own / "prompts.txt").write_text("a red circle\n\na blue square\n")
    done = halftone("quantize", own, *how, "-o", tmp_path / "own", "--json")
    assert done.code == 0 and "the 2 prompts that come with the model" in done.err
    assert done.json["report"]["trajectory"]["conditions"]["prompt"].startswith("2 values")
    for content, word in ((b"a\n\xff\xfe", "line 2"), (b"\n", "one a line")):
        (own / "prompts.txt").write_bytes(content)
        refused(halftone, [word, "prompts.txt"], "quantize", own, *how, "-o", tmp_path / "none")


def test_evaluating_under_the_guidance_that_was_calibrated(
    halftone: Halftone, base: Path, quantized: Path, tmp_path: Path
) -> None:
    how = ("--prompts", base / "prompts.txt", "--samples", 2, "--steps", 2, "--trail", 2, "--json")
    own = halftone("evaluate", quantized, "--against", base / "model", *how)
    assert own.code == 0, own.err
    other = halftone("evaluate", quantized, "--against", base / "model", *how, "--guidance", 2, "--negative", "blue")
    assert "guidance 2.0 (calibrated: 7.5)" in other.err and "guidance" not in own.err
    assert other.json["paired"]["psnr"] != own.json["paired"]["psnr"]
    assert any("CLIP" in sentence for sentence in own.json["public"]["missing"])  # said in the record, too
    with np.load(quantized / "halftone/samples.npz") as kept:
        assert kept["texts"].tolist() == [PROMPTS[n % len(PROMPTS)] for n in range(2)]


@pytest.mark.filterwarnings("ignore:There are modules in")  # diffusers', on casts
def test_another_dtype(halftone: Halftone, base: Path, quantized: Path, model: Path, tmp_path: Path) -> None:
    drawn = {}
    for dtype in ("float32", "bfloat16"):
        done = halftone(*DRAW, quantized, "--dtype", dtype, "-o", tmp_path / f"{dtype}.png")
        assert done.code == 0, done.err
        with Image.open(tmp_path / f"{dtype}.png") as picture:
            drawn[dtype] = np.asarray(picture).astype(float)
    apart = np.abs(drawn["float32"] - drawn["bfloat16"]).mean()
    assert 0 < apart < 30
    timed = halftone("bench", quantized, "--dtype", "bfloat16", "--rounds", 2, "--warmup", 0, "--no-keep", "--json")
    assert timed.code == 0, timed.err
    assert timed.json["protocol"]["dtype"] == "bfloat16" and timed.json["rows"][0]["memory"]["peak"] > 0
    how = ("--samples", 2, "--steps", 2, "--trail", 2, "--no-keep", "--json", "--dtype")
    against = ("--against", base / "model", "--prompts", base / "prompts.txt")
    found = {dtype: halftone("evaluate", quantized, *against, *how, dtype) for dtype in drawn}
    assert all(each.code == 0 for each in found.values()), found["bfloat16"].err
    psnr = {dtype: each.json["paired"]["psnr"]["value"] for dtype, each in found.items()}
    assert found["bfloat16"].json["protocol"]["dtype"] == "bfloat16"
    assert 35 < psnr["bfloat16"] < psnr["float32"], "of the same noise, less exactly"
    where = ("-o", tmp_path / "x.png", "--dtype")
    refused(
        halftone, ["--dtype", "Did you mean 'bfloat16'"], "generate", quantized, "--prompt", "a", *where, "bfloat61"
    )
    refused(halftone, ["an autoencoder", "float16"], "generate", model, "-n", 1, *where, "bfloat16")
    refused(halftone, ["a quantized MODEL"], "bench", model, "--dtype", "bfloat16")


@pytest.mark.usefixtures("quantized")  # which writes the prompts
def test_quantizing_under_the_guidance_that_will_be_used(
    halftone: Halftone, base: Path, model: Path, tmp_path: Path
) -> None:
    little = ("--recipe", "rtn-w8a8", "--set", "calibration.samples=4", "--set", "calibration.arguments={eta: 0.0}")
    how = (*little, "--prompts", base / "prompts.txt", "--steps", 2, "--guidance", 3, "--json")
    done = halftone("quantize", base / "model", *how, "--also", "vae=rtn-w8a8", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    report = done.json["report"]
    for part in (report, report["also"]["vae"]):
        assert part["trajectory"]["arguments"]["guidance_scale"] == 3
    assert report["trajectory"]["arguments"]["eta"] == 0, "what was set stays"
    where = ("generate", tmp_path / "out", "-n", 1, "--steps", 2, "--prompt", "a", "--guidance")
    assert "guidance" not in halftone(*where, 3, "-o", tmp_path / "same.png").err
    assert "guidance 2.0 (calibrated: 3" in halftone(*where, 2, "-o", tmp_path / "other.png").err
    refused(halftone, ["guidance_scale", "Leave it out"], "quantize", model, *how, "-o", tmp_path / "none")


def test_a_hub_id_without_a_network_says_what_to_do(halftone: Halftone, tmp_path: Path) -> None:
    words = ["a pipeline on the hub that can be reached", "hf download", "halftone zoo"]
    refused(halftone, words, "generate", "nobody/nothing-of-this-name", "--prompt", "a", "-o", tmp_path / "x.png")
    refused(halftone, words, "inspect", "--plan", "nobody/nothing-of-this-name")


@pytest.mark.parametrize("kind", [StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline])
def test_pipelines_that_need_pictures_are_refused(halftone: Halftone, base: Path, tmp_path: Path, kind: type) -> None:
    kind.from_pipe(tiny_stable_diffusion(base / "tokenizer")).save_pretrained(tmp_path / "model")  # type: ignore[attr-defined]
    words = ["prompts or labels alone", kind.__name__, "In Python"]
    refused(halftone, words, "quantize", tmp_path / "model", "--recipe", "rtn-w8a8", "-o", tmp_path / "out")
    refused(halftone, words, "generate", tmp_path / "model", "--prompt", "a", "-o", tmp_path / "x.png")
    refused(halftone, words, "evaluate", tmp_path / "model", "--prompts", base / "prompts.txt")


def test_a_missing_component_is_said_to_be_missing(halftone: Halftone, base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base / "model", tmp_path / "half"))
    shutil.rmtree(folder / "vae")
    refused(halftone, ["vae", "fetch it again"], "generate", folder, "--prompt", "a", "-o", tmp_path / "x.png")


def test_truncated_float_weights_are_said_to_be(halftone: Halftone, base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base / "model", tmp_path / "half"))
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(halftone, ["fetch it again"], "generate", folder, "--prompt", "a", "-o", tmp_path / "x.png")


def test_weights_are_opened_before_anything_is_drawn(
    halftone: Halftone, base: Path, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "open_model", lambda *_, **__: pytest.fail("a model was loaded"))
    (tmp_path / "vgg16.pt").write_bytes(b"nothing")
    how = ("--prompts", base / "prompts.txt", "--samples", 2)
    refused(halftone, ["vgg16.pt", "a TorchScript program"], "evaluate", quantized, *how, "--public", tmp_path)
    refused(halftone, ["a folder of pictures", "0 of them"], "evaluate", quantized, *how, "--real", tmp_path)


@pytest.mark.parametrize("gone", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_a_folder_that_is_half_there(halftone: Halftone, base: Path, tmp_path: Path, gone: str) -> None:
    folder = Path(shutil.copytree(base / "model", tmp_path / "half"))
    (folder / gone).unlink()
    words = ["a whole pipeline folder", gone.partition("/")[0], "fetch it again"]
    refused(halftone, words, "generate", folder, "--prompt", "a", "-o", tmp_path / "x.png")


def test_a_shard_that_is_not_there(halftone: Halftone, base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base / "model", tmp_path / "half"))
    whole = folder / "unet/diffusion_pytorch_model.safetensors"
    shutil.copy(whole, folder / "unet/diffusion_pytorch_model-00001-of-00002.safetensors")
    whole.unlink()
    shards = {
        "a": "diffusion_pytorch_model-00001-of-00002.safetensors",
        "b": "diffusion_pytorch_model-00002-of-00002.safetensors",
    }
    index = {"metadata": {"total_size": 1}, "weight_map": shards}
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    words = ["a whole pipeline folder", shards["b"], "fetch it again"]
    refused(halftone, words, "generate", folder, "--prompt", "a", "-o", tmp_path / "x.png")


def test_a_pipeline_without_a_denoiser(halftone: Halftone, base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base / "model", tmp_path / "none"))
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))
    done = halftone("quantize", folder, "--recipe", "rtn-w8a8", "-o", tmp_path / "out")
    assert done.code == 2, done.err
    assert "expected a component unet, transformer, prior, decoder, got " in done.err and "text_encoder" in done.err
