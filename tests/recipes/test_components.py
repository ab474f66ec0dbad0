"""Other parts of a pipeline than the denoiser: an autoencoder's decoder on integers, a ControlNet, and all of them together."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from PIL import Image
from tests.stable_diffusion import PROMPTS, tiny_stable_diffusion, tiny_stable_diffusion_xl
from tests.tiny import pipeline, tiny_unet

import halftone
from halftone.artifact import described, load_pipeline, save_pipeline
from halftone.calibrate.samples import Stop
from halftone.calibrate.sampling import run_steps
from halftone.cli.app import run
from halftone.foundation.errors import CalibrationError, ConfigError
from halftone.models.component import component
from halftone.nn.layers import quantized_layers
from halftone.recipes import engine

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers' schedulers
FEW = ["calibration.samples=12"]
RED = Image.new("RGB", (16, 16), (255, 0, 0))


@pytest.fixture
def pipe(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionPipeline:
    return tiny_stable_diffusion(tmp_path_factory.getbasetemp() / "components-tokenizer")


def draw(pipe: Any, **how: Any) -> np.ndarray:
    given = {"num_inference_steps": 3, "output_type": "np", **how}
    return pipe("red circle", generator=torch.Generator().manual_seed(0), **given).images


def quantize(pipe: Any, recipe: str, name: str | None, **how: Any) -> halftone.Result:
    each = {"prompt": PROMPTS, **how.pop("each", {})}
    return halftone.quantize(pipe, recipe, steps=4, budget="demo", each=each, overrides=FEW, component=name, **how)


def controlled(pipe: StableDiffusionPipeline) -> StableDiffusionControlNetPipeline:
    """Return the pipeline with a ControlNet, whose outputs begin at zero no more."""
    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8, 8))
    random = torch.Generator().manual_seed(1)
    for value in net.parameters():
        value.data.normal_(0, 0.1, generator=random)
    made = StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=net.eval())
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("recipe", ["rtn-w8a8", "gptq-w4a8"])
def test_a_decoder_runs_on_integers_and_the_encoder_holds_codes(
    pipe: StableDiffusionPipeline, recipe: str, tmp_path: Path
) -> None:
    latents, wanted = draw(pipe, output_type="latent"), draw(pipe)
    report = quantize(pipe, recipe, "vae").report
    assert report["trajectory"]["calls"] == 1 and report["trajectory"]["samples"] == 3, (
        "as many images as the U-Net's 12"
    )
    assert torch.equal(draw(pipe, output_type="latent"), latents), "the denoiser was not touched"
    layers = dict(quantized_layers(pipe.vae))
    kept = {path for path, facts in report["layers"].items() if facts["kept"]}
    assert kept == {"quant_conv", "post_quant_conv"} and layers.keys() == report["layers"].keys() - kept
    assert next(iter(pipe.vae.post_quant_conv.parameters())).dtype == torch.float32, "SDXL asks it for the dtype"
    for path, layer in layers.items():
        assert layer.is_quantized("input") == path.startswith("decoder."), path
    found = draw(pipe)
    error, size = np.square(found - wanted).mean(), np.square(wanted - wanted.mean()).mean()
    assert 0 < error < 0.05 * size
    again = load_pipeline(save_pipeline(pipe, tmp_path / "out"))
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(again), found)
    assert described(again.vae) is not None and described(again.unet) is None


def test_the_engines_agree_on_a_decoder(pipe: StableDiffusionPipeline) -> None:
    quantize(pipe, "rtn-w8a8", "vae")
    images = {}
    for name in ("simulate", "auto"):
        halftone.set_engine(pipe.vae, name)
        images[name] = draw(pipe)
    assert np.abs(images["simulate"] - images["auto"]).max() < 0.02


def test_denoiser_and_decoder_one_after_the_other(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    quantize(pipe, "rtn-w4a8", None, work=tmp_path / "unet.work")
    quantize(pipe, "rtn-w8a8", "vae", work=tmp_path / "vae.work")
    folder = save_pipeline(pipe, tmp_path / "out")
    again = load_pipeline(folder)
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(again), draw(pipe))
    with pytest.raises(ConfigError, match="component vae: expected a float one"):
        quantize(again, "rtn-w8a8", "vae")


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_decoder_that_is_widened_to_decode(dtype: torch.dtype, tmp_path: Path) -> None:
    pipe = tiny_stable_diffusion_xl(tmp_path / "tokenizer")
    wanted = draw(pipe)
    assert pipe.vae.config.force_upcast
    # Calibrated in either width, and used in half precision: SDXL asks a layer of the autoencoder for its dtype.
    pipe.to(dtype)
    quantize(pipe, "rtn-w8a8", "vae")
    assert pipe.vae.dtype == dtype
    found = draw(pipe.to(torch.float16))
    assert np.square(found - wanted).mean() < 0.01 * np.square(wanted - wanted.mean()).mean()


def test_an_image_of_another_size_is_told(pipe: StableDiffusionPipeline) -> None:
    quantize(pipe, "rtn-w8a8", "vae")
    draw(pipe)
    with pytest.warns(halftone.TrajectoryWarning, match=r"Decoder is called with .* sample \[4, 8, 6\]"):
        draw(pipe, height=32, width=24)


def test_a_controlnet_is_calibrated_in_its_own_calls(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    made = controlled(pipe)
    wanted = draw(made, image=RED)
    report = quantize(made, "rtn-w8a8", "controlnet", each={"image": [RED] * len(PROMPTS)}).report
    assert "controlnet_cond" in report["trajectory"]["reach"]["inputs"]
    assert report["left_float"] == []
    found = draw(made, image=RED)
    assert 0 < np.square(found - wanted).mean() < 0.05 * np.square(wanted - wanted.mean()).mean()
    quantize(made, "rtn-w8a8", None, each={"image": [RED] * len(PROMPTS)})
    again = load_pipeline(save_pipeline(made, tmp_path / "both"))
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(again, image=RED), draw(made, image=RED))


@pytest.mark.parametrize(
    ("name", "words"),
    [("vea", "Did you mean 'vae'"), ("tokenizer", "'tokenizer'"), ("scheduler", "Known: text_encoder, unet, vae")],
)
def test_a_component_that_cannot_be_quantized(pipe: StableDiffusionPipeline, name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        component(pipe, name)


def test_the_denoiser_by_its_name_is_the_denoiser() -> None:
    pipe = pipeline(tiny_unet())
    assert component(pipe, "unet") == component(pipe)
    assert component(pipe).network is pipe.unet


@pytest.mark.parametrize("option", ["slicing", "tiling"])
def test_an_autoencoder_that_decodes_in_pieces(pipe: StableDiffusionPipeline, option: str) -> None:
    getattr(pipe.vae, f"enable_{option}")()
    with pytest.raises(CalibrationError, match=f"disable_{option}"):
        quantize(pipe, "rtn-w8a8", "vae")
    getattr(pipe.vae, f"disable_{option}")()
    quantize(pipe, "rtn-w8a8", "vae")
    getattr(pipe.vae, f"enable_{option}")()
    assert np.isfinite(draw(pipe)).all()


def test_a_hook_that_stops_the_pipeline_leaves_the_autoencoder_as_it_was(pipe: StableDiffusionPipeline) -> None:
    def widen(module: torch.nn.Module, args: tuple) -> None:
        pipe.vae.to(torch.float64)  # as SDXL does before it decodes
        raise Stop

    with pipe.vae.decoder.register_forward_pre_hook(widen), contextlib.suppress(Stop):
        run_steps(pipe, 2, {"prompt": "red"}, pipe.vae.decoder)
    assert pipe.vae.dtype == torch.float32


def test_weights_beside_the_decoder_are_looked_at_first(pipe: StableDiffusionPipeline) -> None:
    pipe.vae.encoder.conv_in.weight.data[0] = float("nan")
    with pytest.raises(CalibrationError, match=r"encoder.conv_in.weight of vae"):
        quantize(pipe, "rtn-w8a8", "vae")
    assert not dict(quantized_layers(pipe.vae))


def test_what_comes_later_is_not_said_to_stay_float(pipe: StableDiffusionPipeline) -> None:
    made = controlled(pipe)
    each = {"image": [RED] * len(PROMPTS)}
    assert quantize(made, "rtn-w8a8", None, each=each, later=["controlnet"]).report["left_float"] == []


def test_several_controlnets_are_refused_before_any_work(pipe: StableDiffusionPipeline) -> None:
    nets = [ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8, 8)) for _ in range(2)]
    made = StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=nets)
    with pytest.raises(ConfigError, match="a MultiControlNetModel"):
        component(made, "controlnet")


def test_the_command_line_has_no_control_images(
    pipe: StableDiffusionPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    controlled(pipe).save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("red")
    assert run(command(tmp_path, tmp_path / "out")) == 2
    assert "component='controlnet'" in capsys.readouterr().err
    assert not (tmp_path / "out.work").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("components")
    tiny_stable_diffusion(place / "tokenizer").save_pretrained(place / "model")
    (place / "prompts.txt").write_text("\n".join(PROMPTS))
    return place


def command(folder: Path, output: Path, *more: str) -> list[str]:
    given = ["quantize", str(folder / "model"), "-r", "rtn-w8a8", "--steps", "3", "--set", "calibration.samples=6"]
    return [*given, "--prompts", str(folder / "prompts.txt"), "-o", str(output), *more]


def test_one_command_quantizes_all(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = ("--also", "vae=rtn-w8a8", "--also", "text_encoder=rtn-w8a32")
    assert run(command(folder, tmp_path / "out", *others, "--json")) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["report"]["also"]["vae"]["recipe"]["name"] == "rtn-w8a8"
    assert said["components"]["vae"]["bytes"] < 0.4 * said["components"]["vae"]["unquantized"]
    assert said["components"]["text_encoder"]["quantized"] == said["components"]["text_encoder"]["layers"] == 6
    assert {"vae: record", "record"} <= said["seconds"].keys()
    assert "`vae` as well, 44 layers" in (tmp_path / "out/README.md").read_text()
    again = load_pipeline(tmp_path / "out")
    assert None not in (described(again.vae), described(again.unet), described(again.text_encoder))
    assert run(["inspect", str(tmp_path / "out"), "--component", "vae", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["totals"]["quantized"] == 44 and shown["totals"]["disagreeing"] == []
    assert shown["components"]["vae"]["quantized"] == 44
    assert not (tmp_path / "out/halftone/inspection.json").exists(), "the record is the denoiser's"


def test_a_run_killed_in_the_second_component_gives_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    also = ("--also", "vae=rtn-w8a8")
    assert run(command(folder, tmp_path / "whole", *also)) == 0
    real = engine.record

    def killed(pipe: Any, *given: Any) -> Any:
        if given[7] is not pipe.unet:
            raise KeyboardInterrupt
        return real(pipe, *given)

    with monkeypatch.context() as patched:
        patched.setattr(engine, "record", killed)
        assert run(command(folder, tmp_path / "cut", *also)) == 130
    assert not (tmp_path / "cut").exists()
    assert run(command(folder, tmp_path / "cut", *also, "--resume")) == 0
    for part in ("unet", "vae"):
        for file in sorted((tmp_path / "whole" / part).iterdir()):
            assert file.read_bytes() == (tmp_path / "cut" / part / file.name).read_bytes()


@pytest.mark.parametrize(
    ("also", "words"),
    [
        ("vae", "NAME=RECIPE"),
        ("vae=", "NAME=RECIPE"),
        ("vae=rtn-w8a9", "Did you mean 'rtn-w8a8'"),
        ("vea=rtn-w8a8", "Did you mean 'vae'"),
        ("unet=rtn-w8a8", "--recipe"),
    ],
)
def test_wrong_requests_for_components(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], also: str, words: str
) -> None:
    assert run(command(folder, tmp_path / "out", "--also", also)) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_prompts_the_usual_ones_calibrate(tmp_path: Path) -> None:
    pipe = tiny_stable_diffusion(tmp_path / "tokenizer")
    result = halftone.quantize(pipe, "rtn-w8a8", steps=2, overrides=["calibration.samples=8"])
    assert result.report["trajectory"]["conditions"]["prompt"].startswith("100 values")
