"""A quantized text encoder is loaded and saved by transformers, in the same format and with the same checks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from diffusers import DiffusionPipeline, PipelineQuantizationConfig, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from tests.stable_diffusion import PROMPTS, tiny_stable_diffusion, tiny_stable_diffusion_xl
from transformers import CLIPTextModel

import halftone
from halftone.artifact import described, load_pipeline, save_pipeline
from halftone.foundation.errors import ArtifactError, ConfigError, MatchError, OutputError
from halftone.nn.layers import quantized_layers

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers' schedulers
    pytest.mark.skipif(transformers.__version__ < "5", reason="older ones load in another way; it is refused"),
]


def quantize(pipe: DiffusionPipeline, recipe: str, name: str) -> halftone.Result:
    few = ["calibration.samples=12"]
    return halftone.quantize(
        pipe, recipe, steps=3, budget="demo", each={"prompt": PROMPTS}, overrides=few, component=name
    )


def draw(pipe: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
    return pipe("red circle", **how).images


@pytest.fixture(scope="module")
def float_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("text-encoder")
    tiny_stable_diffusion(place / "tokenizer").save_pretrained(place / "float")
    return place / "float"


@pytest.fixture(scope="module")
def folder(float_folder: Path) -> Path:
    pipe = load_pipeline(float_folder)
    quantize(pipe, "rtn-w8a32", "text_encoder")
    return save_pipeline(pipe, float_folder.parent / "out")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder to damage."""
    for file in folder.rglob("*"):
        if file.is_file():
            place = tmp_path / "copy" / file.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    return tmp_path / "copy"


def test_save_pretrained_again_changes_nothing_but_where_it_was_loaded_from(folder: Path, tmp_path: Path) -> None:
    """diffusers writes that path; :func:`save_pipeline` does not, so that its bytes are the same."""
    # A tokenizer that has been called keeps how: what is loaded here has been saved by one that was.
    first = save_pipeline(load_pipeline(folder), tmp_path / "first")
    load_pipeline(first).save_pretrained(tmp_path / "again")
    save_pipeline(load_pipeline(tmp_path / "again"), tmp_path / "ours")
    for file in (each for each in first.rglob("*") if each.is_file()):
        name = file.relative_to(first)
        assert (tmp_path / "ours" / name).read_bytes() == file.read_bytes(), name
        theirs = tmp_path / "again" / name
        if file.suffix == ".json" and theirs.read_bytes() != file.read_bytes():
            changed = json.loads(theirs.read_text())
            assert changed.pop("_name_or_path"), name
            assert changed == json.loads(file.read_text()), name
        else:
            assert theirs.read_bytes() == file.read_bytes(), name


@pytest.mark.parametrize("recipe", ["rtn-w8a32", "gptq-w4a8"])
def test_the_images_stay_and_come_back(float_folder: Path, tmp_path: Path, recipe: str) -> None:
    pipe = load_pipeline(float_folder)
    wanted = draw(pipe)
    report = quantize(pipe, recipe, "text_encoder").report
    roles = {facts["role"] for facts in report["layers"].values()}
    assert roles == {f"attention.self.{part}" for part in ("q", "k", "v", "out")} | {"ff.up", "ff.down"}
    assert report["trajectory"]["reach"]["inputs"] == {"input_ids": [77]}
    found = draw(pipe)
    assert 0 < np.square(found - wanted).mean() < 0.05 * np.square(wanted - wanted.mean()).mean()
    again = load_pipeline(save_pipeline(pipe, tmp_path / "out"))
    assert np.array_equal(draw(again), found)
    assert described(again.text_encoder) is not None and described(again.unet) is None


def test_it_holds_codes_only_and_saves_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(folder)
    layers = dict(quantized_layers(pipe.text_encoder))
    assert layers and all(layer.weight.dtype == torch.uint8 for layer in layers.values())
    again = save_pipeline(pipe, tmp_path / "again") / "text_encoder"
    for file in (folder / "text_encoder").iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_no_dtype_rounds_its_scales(folder: Path, dtype: torch.dtype) -> None:
    stored = load_file(folder / "text_encoder/model.safetensors")
    text = load_pipeline(folder, dtype=dtype).text_encoder
    assert text.dtype == dtype
    for cast in (text, text.to(torch.float32), text.to(dtype)):
        scales = {name: value for name, value in cast.state_dict().items() if name.endswith("_scale")}
        assert scales and all(torch.equal(value, stored[name]) for name, value in scales.items())


def test_checkpoints_with_the_older_names(float_folder: Path, copy: Path, tmp_path: Path) -> None:
    """The text encoders on the hub were saved before transformers 5, with a prefix that it takes away."""
    weights = load_file(float_folder / "text_encoder/model.safetensors")
    older = {f"text_model.{name}": value for name, value in weights.items()}
    for name in ("model.safetensors", "config.json"):
        (copy / "text_encoder" / name).write_bytes((float_folder / "text_encoder" / name).read_bytes())
    save_file(older, copy / "text_encoder/model.safetensors", {"format": "pt"})
    pipe = load_pipeline(copy)
    quantize(pipe, "rtn-w8a32", "text_encoder")
    out = save_pipeline(pipe, tmp_path / "out")
    assert not any(name.startswith("text_model.") for name in load_file(out / "text_encoder/model.safetensors"))
    assert np.array_equal(draw(load_pipeline(out)), draw(pipe))


def test_both_text_encoders_of_sdxl(tmp_path: Path) -> None:
    pipe = tiny_stable_diffusion_xl(tmp_path / "tokenizer")
    wanted = draw(pipe)
    for name in ("text_encoder", "text_encoder_2"):
        report = quantize(pipe, "rtn-w8a32", name).report
    assert report["layers"]["text_projection"]["role"] == "text.out"
    found = draw(pipe)
    assert 0 < np.square(found - wanted).mean() < 0.05 * np.square(wanted - wanted.mean()).mean()
    assert np.array_equal(draw(load_pipeline(save_pipeline(pipe, tmp_path / "out"))), found)


def flip(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def lose(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if name.endswith("weight_scale")))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def rename(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["ignore"] = ["encoder.layers.7.mlp.fc3"]
    (folder / "config.json").write_text(json.dumps(config))


def pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip, "checksum"),
        (lose, "nothing for"),
        (rename, "layers of this model"),
        (pickle, "pickle is not read|Pickle"),
    ],
)
@pytest.mark.parametrize("direct", [False, True], ids=["halftone", "transformers"])
def test_damage_is_an_error(copy: Path, damage: Any, words: str, direct: bool) -> None:
    damage(copy / "text_encoder")
    with pytest.raises(ArtifactError, match=words):
        CLIPTextModel.from_pretrained(copy / "text_encoder") if direct else load_pipeline(copy)


def test_rounded_while_it_loads_it_is_what_it_would_be_afterwards(float_folder: Path, tmp_path: Path) -> None:
    config = PipelineQuantizationConfig(quant_mapping={"text_encoder": halftone.HalftoneConfig("rtn-w8a32")})
    pipe = DiffusionPipeline.from_pretrained(float_folder, quantization_config=config)
    later = load_pipeline(float_folder)
    quantize(later, "rtn-w8a32", "text_encoder")
    wanted, found = later.text_encoder.state_dict(), pipe.text_encoder.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())
    assert described(pipe.text_encoder).recipe["name"] == "rtn-w8a32"
    assert all(layer.weight.dtype == torch.uint8 for _, layer in quantized_layers(pipe.text_encoder))
    again = load_pipeline(save_pipeline(pipe, tmp_path / "out"))
    assert np.array_equal(draw(again), draw(pipe))


def test_rounded_while_it_loads_in_another_dtype(float_folder: Path) -> None:
    given = halftone.HalftoneConfig("rtn-w8a32")
    text = CLIPTextModel.from_pretrained(float_folder / "text_encoder", quantization_config=given, dtype=torch.bfloat16)
    layers = [layer for _, layer in quantized_layers(text)]
    assert layers and text.dtype == torch.bfloat16
    assert all(layer.weight_scale.dtype == torch.float32 and layer.bias.dtype == torch.bfloat16 for layer in layers)


def test_a_recipe_that_a_text_encoder_has_no_layers_for(float_folder: Path) -> None:
    given = halftone.HalftoneConfig("rtn-w8a32", overrides=["policy.1.optional=false", "policy.1.roles=conv_in"])
    with pytest.raises(MatchError, match="conv_in"):
        CLIPTextModel.from_pretrained(float_folder / "text_encoder", quantization_config=given)


def test_an_old_transformers_is_refused_before_any_work(float_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = load_pipeline(float_folder)
    monkeypatch.setattr(transformers, "__version__", "4.57.1")
    with pytest.raises(ConfigError, match="transformers 5 or newer, got 4.57.1"):
        halftone.quantize(pipe, "rtn-w8a32", steps=1, later=["text_encoder"])
    assert not list(quantized_layers(pipe.unet)), "the denoiser, which would have come first, is as it was"


def test_adapters_are_not_saved_with_it(folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    pipe: StableDiffusionPipeline = load_pipeline(folder)
    before = draw(pipe)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), pipe.text_encoder)
    assert not np.array_equal(draw(pipe), before)
    with pytest.raises(OutputError, match="adapters"):
        pipe.save_pretrained(tmp_path / "out")


def test_the_pipelines_own_fusing_leaves_its_codes_alone(folder: Path) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    pipe = load_pipeline(folder)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), pipe.text_encoder)
    before = {name: value.clone() for name, value in pipe.text_encoder.state_dict().items()}
    for safe in (True, False):
        with pytest.raises(ConfigError, match=r"fuse_lora: .*q_proj: .*halftone\.fuse_lora"):
            pipe.fuse_lora(components=["text_encoder"], safe_fusing=safe, lora_scale=0.5)
    after = pipe.text_encoder.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert halftone.fuse_lora(pipe)


@pytest.mark.parametrize(
    "first",
    [
        ["import halftone", "import transformers.modeling_utils"],
        ["import transformers.modeling_utils", "import halftone"],
        ["import halftone", "from halftone.artifact import HalftoneConfig", "import transformers"],
    ],
    ids=["halftone first", "transformers first", "the loader first"],
)
def test_transformers_alone_loads_it(folder: Path, first: list[str]) -> None:
    lines = [*first, f"text = transformers.CLIPTextModel.from_pretrained({str(folder / 'text_encoder')!r})"]
    lines += ["assert text.encoder.layers[0].mlp.fc1.weight.dtype.itemsize == 1"]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True)
