"""Token sinks: found where there are any, kept out of the ranges, exact in the result, and carried through files and adapters."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from tests.stable_diffusion import PROMPTS, tiny_stable_diffusion, tiny_stable_diffusion_xl

import halftone
from halftone.artifact import load_pipeline, save_pipeline
from halftone.artifact.schema import parse, to_json
from halftone.foundation.errors import ArtifactError, CalibrationError, ConfigError
from halftone.methods.transforms.token_sinks import sinks
from halftone.models.policy import Rule
from halftone.nn import QuantLinear, Scheme
from halftone.nn.layers import quantized_layers
from halftone.quant import QuantSpec
from halftone.recipes import load

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers' schedulers
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),
]
STEP = {"sinks": {"method": "transforms/token_sinks"}}
SIXTY = 60.0


def with_sink(folder: Path, size: float = SIXTY) -> StableDiffusionPipeline:
    """Return a pipeline whose text encoder puts out a first token ``size`` times larger than the others, as CLIP's does."""
    pipe = tiny_stable_diffusion(folder / "tokenizer")
    text = pipe.text_encoder

    def enlarge(module: torch.nn.Module, args: tuple, out: torch.Tensor) -> torch.Tensor:
        return torch.cat([size * out[:, :1], out[:, 1:]], dim=1)

    text.final_layer_norm.register_forward_hook(enlarge)
    return pipe


def quantize(
    pipe: StableDiffusionPipeline, first: dict[str, Any], *overrides: str, prompts: list[str] = PROMPTS
) -> halftone.Result:
    """Quantize with the steps ``first`` before those of the recipe."""
    given = ["calibration.samples=16", "calibration.arguments={guidance_scale: 5.0}", *overrides]
    recipe = load("gptq-w8a8", "demo", given)
    return halftone.quantize(pipe, replace(recipe, steps={**first, **recipe.steps}), steps=4, each={"prompt": prompts})


def text(pipe: StableDiffusionPipeline, prompt: str) -> torch.Tensor:
    tokens = pipe.tokenizer([prompt], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        return pipe.text_encoder(tokens)[0]


def call(pipe: StableDiffusionPipeline) -> torch.Tensor:
    """Return what the U-Net answers to one prompt."""
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    words = text(pipe, "red circle")
    with torch.no_grad():
        return pipe.unet(x, torch.tensor([500]), words).sample


def kept(pipe: StableDiffusionPipeline) -> dict[str, QuantLinear]:
    return {path: layer for path, layer in quantized_layers(pipe.unet) if isinstance(layer, QuantLinear) and layer.kept}


def test_sinks_are_leading_tokens_that_are_large_and_do_not_change() -> None:
    tokens = torch.ones(6, 4)
    assert sinks(tokens, tokens, 4.0, 1e-3) == 0, "one text alone: anything looks constant"
    low, high = tokens.clone(), tokens.clone()
    high[2:] += 0.5
    assert sinks(low, high, 4.0, 1e-3) == 0, "constant, but not large"
    low[:2], high[:2] = 50.0, 50.0
    assert sinks(low, high, 4.0, 1e-3) == 2
    high[1] += 1.0
    assert sinks(low, high, 4.0, 1e-3) == 1, "the second one moves"
    high[0] += 1.0
    assert sinks(low, high, 4.0, 1e-3) == 0, "only those from the first on"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[StableDiffusionPipeline, halftone.Result]]:
    """The same pipeline quantized without and with the step, and the float one."""
    folder = tmp_path_factory.mktemp("sinks")
    found: dict[str, Any] = {"float": (with_sink(folder), None)}
    for name, first in (("without", {}), ("with", STEP)):
        pipe = with_sink(folder)
        found[name] = pipe, quantize(pipe, first)
    return found


def test_they_are_found_and_free_the_other_tokens(both: dict) -> None:
    words = text(both["float"][0], "green hand")
    for path in kept(both["with"][0]):
        with torch.no_grad():
            out = {name: pipe.unet.get_submodule(path)(words)[:, 1:] for name, (pipe, _) in both.items()}
        error = {name: (out[name] - out["float"]).square().mean().item() for name in ("without", "with")}
        assert error["with"] < 0.05 * error["without"], path
    layers = both["with"][1].report["steps"]["sinks"]["layers"]
    assert {facts["kept"] for facts in layers.values()} == {1}
    assert min(facts["times_the_median"] for facts in layers.values()) > 4
    roles = both["with"][1].report["layers"]
    assert {roles[path]["role"] for path in kept(both["with"][0])} == {"attention.cross.k", "attention.cross.v"}
    assert not kept(both["without"][0])


def test_their_keys_are_the_float_models_own(both: dict) -> None:
    """Whatever the prompt; the others are rounded."""
    (path, layer), *_ = kept(both["with"][0]).items()
    plain = both["float"][0].unet.get_submodule(path)
    for prompt in ("red circle", "something else altogether"):
        words = text(both["float"][0], prompt)
        with torch.no_grad():
            got, want = layer(words), plain(words)
        torch.testing.assert_close(got[:, :1], want[:, :1], rtol=1e-5, atol=1e-5)
        assert not torch.equal(got[:, 1:], want[:, 1:])
    assert layer.input_scale * 255 < 0.5 * words.abs().max(), "the range is that of the other tokens"


def test_the_attentions_own_ranges_leave_them_out(both: dict) -> None:
    for path in kept(both["with"][0]):
        attention = path.rpartition(".")[0]
        narrow, wide = (both[name][0].unet.get_submodule(attention).operands for name in ("with", "without"))
        assert narrow.site_specs["k"].keep == 1 and narrow.site_specs["q"].keep == 0
        assert narrow.k_scale < wide.k_scale


@pytest.mark.parametrize("engine", ["simulate", "auto"])
def test_engines_agree_and_files_keep_them(both: dict, engine: str, tmp_path: Path) -> None:
    pipe = both["with"][0]
    halftone.set_engine(pipe.unet, engine)
    found = call(pipe)
    torch.testing.assert_close(found, call(both["float"][0]), rtol=0.2, atol=0.2 * float(found.abs().max()))
    folder = save_pipeline(pipe, tmp_path / "out")
    again = load_pipeline(folder)
    halftone.set_engine(again.unet, engine)
    again.text_encoder = pipe.text_encoder
    assert torch.equal(call(again), found) and kept(again).keys() == kept(pipe).keys()
    half = load_pipeline(folder, dtype=torch.bfloat16)
    for path, layer in kept(half).items():
        assert layer.kept_output.dtype == torch.float32 and torch.equal(layer.kept_output, kept(pipe)[path].kept_output)


def test_merged_adapters_reach_them(both: dict, tmp_path: Path) -> None:
    pipe = load_pipeline(save_pipeline(both["with"][0], tmp_path / "out"))
    pipe.text_encoder = both["with"][0].text_encoder
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=["to_k"], init_lora_weights=False))
    before = {path.replace(".base_layer", ""): layer.kept_output.clone() for path, layer in kept(pipe).items()}
    adapted = call(pipe)
    halftone.fuse_lora(pipe)
    assert all(
        torch.equal(layer.kept_output, before[path]) == path.endswith("to_v") for path, layer in kept(pipe).items()
    )
    torch.testing.assert_close(call(pipe), adapted, rtol=0.1, atol=0.1 * float(adapted.abs().max()))


def test_another_first_token_is_told(both: dict, tmp_path: Path) -> None:
    pipe = load_pipeline(save_pipeline(both["with"][0], tmp_path / "out"))
    pipe.text_encoder = both["with"][0].text_encoder
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(pipe)
    words = text(pipe, "red circle")
    with pytest.warns(halftone.TrajectoryWarning, match="other leading text tokens"), torch.no_grad():
        pipe.unet(torch.zeros(1, 4, 4, 4), torch.tensor([500]), words * 1.1)


def test_no_sink_none_kept(tmp_path: Path) -> None:
    pipe = with_sink(tmp_path, size=1.0)
    quantize(pipe, STEP)
    assert not kept(pipe)


@pytest.mark.parametrize("zeros", [True, False])
def test_an_empty_prompt_of_zeros_has_no_sink(tmp_path: Path, zeros: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """SDXL's is: what half of the guided calls read is not what a calibration of the other half saw."""
    pipe = tiny_stable_diffusion_xl(tmp_path / "tokenizer")
    pipe.register_to_config(force_zeros_for_empty_prompt=zeros)
    encode = pipe.encode_prompt

    def enlarged(*args: Any, **kwargs: Any) -> tuple:
        words, *others = encode(*args, **kwargs)
        return torch.cat([SIXTY * words[:1, :1].expand(len(words), -1, -1), words[:, 1:]], dim=1), *others

    monkeypatch.setattr(pipe, "encode_prompt", enlarged)
    result = quantize(pipe, STEP, "calibration.halves=conditional")
    assert bool(kept(pipe)) != zeros
    assert ("zeros" in str(result.report["steps"]["sinks"])) == zeros
    assert result.report["trajectory"]["halves"] == "conditional"


def test_one_text_alone_is_told(tmp_path: Path) -> None:
    pipe = with_sink(tmp_path)
    result = quantize(pipe, STEP, "calibration.arguments={guidance_scale: 1.0}", prompts=["red circle"])
    assert not kept(pipe)
    assert "the same text" in result.report["steps"]["sinks"]["notes"][0]


def test_what_cannot_be_kept_is_refused(both: dict) -> None:
    with pytest.raises(ConfigError, match="a number of tokens"):
        QuantSpec("uint8", keep=-1)
    with pytest.raises(ConfigError, match="keep of a weight"):
        Scheme(QuantSpec("uint8", keep=1))
    description = both["with"][0].unet.hf_quantizer.quantization_config.description
    document = to_json(description)
    assert parse(document) == description
    group = next(g for g in document["config_groups"].values() if "keep" in (g["input_activations"] or {}))
    for wrong in (0, -1, True, 1.5, "1", 10**6):
        group["input_activations"]["keep"] = wrong
        with pytest.raises(ArtifactError, match="keep"):
            parse(document)
    group["input_activations"]["keep"] = 1
    group["weights"] = {**group["weights"], "keep": 1}
    with pytest.raises(ArtifactError, match="keep"):
        parse(document)


def test_a_policy_alone_keeps_no_token(tmp_path: Path) -> None:
    """Their outputs come from the step that finds them."""
    pipe = with_sink(tmp_path)
    recipe = load("rtn-w8a8", overrides=["calibration.samples=8"])
    rule = Rule("attention.cross.k", input=QuantSpec("uint8", keep=1))
    with pytest.raises(CalibrationError, match="token_sinks"):
        halftone.quantize(pipe, replace(recipe, policy=(*recipe.policy, rule)), steps=4, each={"prompt": PROMPTS})
