"""Wrong requests: exit code 2, one message that says what to do, no traceback, nothing left behind."""

import errno
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import ConfigMixin, DDIMPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from tests.tiny import pipeline, tiny_unet
from torch import nn

from halftone.cli import app, models
from halftone.cli.evaluate import parse_expectation
from halftone.cli.options import byte_count
from halftone.foundation import files
from halftone.foundation.errors import CalibrationError, ConfigError

from .conftest import QUICK, Halftone


def refused(halftone: Halftone, words: list[str], *arguments: object, code: int = 2) -> None:
    """Assert that the command fails with ``code``, naming ``words``, with neither traceback nor output."""
    done = halftone(*arguments)
    assert done.code == code, done.err
    assert "Traceback" not in done.err and done.out == ""
    message = done.err[done.err.index("error: ") :]
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quantise", "x"], ["'quantize'"]),
        (["quantize", "x", "--recipes", "y"], ["--recipe"]),
        (["quantize", "x", "-r", "rtn-w4a8"], ["--output"]),
        (["quantize", "x", "-r", "rtn-w4a8", "-o", "y", "--steps", "0"], ["--steps"]),
        (["recipes", "shwo"], ["'show'"]),
        (["recipes", "show", "q-difusion-w4a8"], ["Did you mean 'q-diffusion-w4a8'"]),
        (["inspect", "zoo:fashion-unit"], ["Did you mean 'fashion-unet'"]),
        (["inspect", "/nowhere/at/all"], ["a pipeline folder or a hub id"]),
        (["report", "/nowhere", "-o", "x.html"], ["a folder"]),
        (["generate", "x", "-o", "picture.jpg"], [".png"]),
        (["evaluate", "x", "--expect", "psnr>=20"], ["--against"]),
        (["evaluate", "x", "--against", "y", "--expect", "pnsr>=20"], ["Did you mean 'psnr'"]),
        (["evaluate", "x", "--against", "y", "--expect", "psnr=20"], ["psnr>=20"]),
        (["zoo", "train", "fashion-unet", "--data", "/nowhere.npz"], ["--data", "no such file"]),
    ],
)
def test_requests_that_are_wrong_by_themselves(halftone: Halftone, arguments: list[str], words: list[str]) -> None:
    refused(halftone, words, *arguments)


def test_nothing_is_said_on_stdout_when_json_was_asked_for(halftone: Halftone) -> None:
    refused(halftone, ["a pipeline folder"], "inspect", "/nowhere/at/all", "--json")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-r", "q-difusion-w4a8"], ["Did you mean 'q-diffusion-w4a8'"]),
        (["-r", "rtn-w4a8", "--budget", "dem"], ["Did you mean 'demo'"]),
        (["-r", "rtn-w4a8", "--set", "steps.weights.rang=shrink"], ["rang", "Did you mean 'range'"]),
        (["-r", "rtn-w4a8", "--set", "steps.activations.range=ema"], ["steps.activations.range", "moving_average"]),
        (["-r", "rtn-w4a8", "--set", "calibration.samples=0"], ["calibration.samples", "1 or more"]),
        (["-r", "rtn-w4a8", "--set", "policy.0.weight.format=uint99"], ["format 'uint99'", "1 to 16 bits"]),
        (["-r", "rtn-w4a8", "--set", "policy.0={roles: '*'}"], ["roles alone", "float_input"]),
        (["-r", "rtn-w4a8", "--set", "step.weights=1"], ["Did you mean 'steps'"]),
        (["-r", "rtn-w4a8", "--set", "steps.weights"], ["path.to.key=value"]),
        (["-r", "rtn-w4a8", "--set", "policy=[{roles: nonsense, weight: {format: uint4}, input: {}}]"], ["nonsense"]),
        (["-r", "rtn-w4a8", "--set", "policy=[{roles: '*', keep: true, input: {}}]"], ["at least one quantized layer"]),
        (["-r", "rtn-w4a8", "--device", "cuda:7"], ["one of cpu"]),
        (["-r", "rtn-w4a8", "--memory", "much"], ["2GB"]),
        (["-r", "rtn-w4a8", "--keep-as", "bfloat"], ["Did you mean 'bfloat16'"]),
    ],
)
def test_quantize_refuses(
    halftone: Halftone, model: Path, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    refused(halftone, words, "quantize", model, *options, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_command_at_all_shows_the_help(halftone: Halftone) -> None:
    done = halftone()
    assert done.code == 2 and done.out == ""
    assert done.err.startswith("Usage: halftone")


def test_an_output_inside_another_pipeline(halftone: Halftone, model: Path) -> None:
    refused(halftone, ["inside the pipeline"], "quantize", model, *QUICK, "-o", model / "unet" / "quantized")
    assert not (model / "unet" / "quantized").exists()


def test_warnings_are_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(app, "keep_freed_memory", lambda: False)
    monkeypatch.setattr(sys, "argv", ["halftone", "--version"])
    assert app.main() == 0
    with warnings.catch_warnings(record=False):
        warnings.simplefilter("always")
        warnings.warn("look at it", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: look at it\n"


def test_a_recipe_that_contradicts_itself(halftone: Halftone, model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text("name: wrong\nextends: rtn-w4a8\ndrop: [activations]\n")
    refused(halftone, ["gives input_scales", "ranges/static"], "quantize", model, "-r", recipe, "-o", tmp_path / "out")
    recipe.write_text("name: wrong\nextends: rtn-w4a8\ndrop: [activation]\n")
    refused(halftone, ["Did you mean 'activations'"], "quantize", model, "-r", recipe, "-o", tmp_path / "out")


def test_output_that_exists_is_refused_before_any_work(
    halftone: Halftone, quantized: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "open_model", lambda *_, **__: pytest.fail("a model was loaded"))
    refused(halftone, ["--overwrite"], "quantize", "anything", *QUICK, "-o", quantized)


def test_prompts(halftone: Halftone, model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a shoe\n\na shirt\n")
    given = ("--prompts", tmp_path / "prompts.txt")
    refused(halftone, ["takes a prompt"], "quantize", model, *QUICK, *given, "-o", tmp_path / "out")
    refused(halftone, ["class labels"], "generate", model, "--label", 3, "-o", tmp_path / "x.png")
    (tmp_path / "prompts.txt").write_text("\n")
    refused(halftone, ["at least one prompt"], "quantize", model, *QUICK, *given, "-o", tmp_path / "out")


def test_more_steps_than_the_scheduler_has(halftone: Halftone, model: Path, tmp_path: Path) -> None:
    words = ["steps", "at most 1000", "DDIMScheduler", "2000"]
    refused(halftone, words, "generate", model, "--steps", 2000, "-o", tmp_path / "x.png")
    refused(halftone, words, "evaluate", model, "--steps", 2000, "--samples", 2)
    refused(halftone, words, "quantize", model, *QUICK, "--steps", 2000, "-o", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_output_below_a_file(
    halftone: Halftone, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "open_model", lambda *_, **__: pytest.fail("a model was loaded"))
    (tmp_path / "some.json").touch()
    words = ["below folders", "some.json, a file", "another path"]
    refused(halftone, words, "quantize", "anything", *QUICK, "-o", tmp_path / "some.json" / "x")
    refused(halftone, words, "generate", "anything", "-o", tmp_path / "some.json" / "x.png")
    refused(halftone, words, "report", quantized, "-o", tmp_path / "some.json" / "deep" / "x.html")


def test_nothing_to_resume_is_said(halftone: Halftone, model: Path, tmp_path: Path) -> None:
    done = halftone("quantize", model, *QUICK, "-o", tmp_path / "out", "--resume")
    assert done.code == 0 and "nothing to resume" in done.err and "starting anew" in done.err


def test_roles_that_are_no_table(halftone: Halftone, model: Path, tmp_path: Path) -> None:
    (tmp_path / "roles.toml").write_text("roles = [")
    roles = ("--roles", tmp_path / "roles.toml")
    refused(halftone, ["a TOML file"], "quantize", model, *QUICK, *roles, "-o", tmp_path / "out")


def test_engines(halftone: Halftone, model: Path, quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(halftone, ["Did you mean 'simulate'"], "inspect", quantized, "--engine", "simulat")
    refused(halftone, ["'triton'", "not built", "auto, simulate"], "inspect", quantized, "--engine", "triton")
    refused(halftone, ["a quantized model"], "inspect", model, "--engine", "simulate")
    monkeypatch.setattr("halftone.kernels.machine.unavailable", lambda *_: "this CPU has no abacus")
    refused(halftone, ["no abacus", "--engine simulate"], "inspect", quantized, "--engine", "torch")


def test_a_model_with_nan_weights(halftone: Halftone, tmp_path: Path) -> None:
    pipe = pipeline(tiny_unet())
    with torch.no_grad():
        pipe.unet.conv_in.weight[0, 0, 0, 0] = torch.nan
    pipe.save_pretrained(tmp_path / "model")
    refused(halftone, ["NaN"], "quantize", tmp_path / "model", *QUICK, "-o", tmp_path / "out", code=3)
    assert not (tmp_path / "out").exists()


def test_a_model_of_all_zeros(halftone: Halftone, tmp_path: Path) -> None:
    pipe = pipeline(tiny_unet())
    for parameter in pipe.unet.parameters():
        parameter.data.zero_()
    pipe.save_pretrained(tmp_path / "model")
    words = ["outputs of UNet2DModel", "vary", "the constant 0", "not zero"]
    refused(halftone, words, "quantize", tmp_path / "model", *QUICK, "-o", tmp_path / "out", code=3)
    assert not (tmp_path / "out").exists()


def test_sites_that_saw_one_value_are_named(halftone: Halftone, tmp_path: Path) -> None:
    pipe = pipeline(tiny_unet())
    silent = pipe.unet.mid_block.resnets[0].norm2  # what its conv2 is fed is then zero
    silent.weight.data.zero_()
    silent.bias.data.zero_()
    pipe.save_pretrained(tmp_path / "model")
    done = halftone("quantize", tmp_path / "model", *QUICK, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert "saw one value only" in done.err and "mid_block.resnets.0.conv2.input (0)" in done.err
    assert "mid_block.resnets.0.conv2.input (0)" in done.json["report"]["steps"]["activations"]["notes"][0]


class Layerless(ModelMixin, ConfigMixin):
    """A denoiser without a single linear or convolution."""

    @register_to_config
    def __init__(self, in_channels: int = 1, sample_size: int = 8) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))


def test_a_model_without_a_quantizable_layer(
    halftone: Halftone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipeline(Layerless())
    monkeypatch.setattr(models, "open_model", lambda *_, **__: pipe)
    refused(halftone, ["at least one linear"], "quantize", "it", *QUICK, "-o", tmp_path / "out")


def test_a_quantized_model_is_not_quantized_again(halftone: Halftone, quantized: Path, tmp_path: Path) -> None:
    refused(halftone, ["a float denoiser"], "quantize", quantized, *QUICK, "-o", tmp_path / "out")


@pytest.mark.parametrize("when", ["trajectory", "memo", "spill", "save"])
def test_a_full_disk(
    halftone: Halftone, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    how = ("--recipe", "gptq-w4a8", "--budget", "demo", *QUICK[2:], "--memory", "1kB", "-o", tmp_path / "out")
    with monkeypatch.context() as patch:
        if when == "trajectory":
            patch.setattr("halftone.calibrate.trajectory.save_file", full)
        elif when == "memo":
            patch.setattr("halftone.methods.contract.save_file", full)
        elif when == "spill":
            patch.setattr("os.posix_fallocate", full)
        else:
            patch.setattr(DDIMPipeline, "save_pretrained", full)
        words = ["room on the disk", "--resume"]
        refused(halftone, words, "quantize", model, *how)
    assert [path.name for path in tmp_path.iterdir()] == ["out.work"]
    done = halftone("quantize", model, *how, "--resume")
    assert done.code == 0, done.err


@pytest.mark.parametrize("damage", ["truncated", "flipped", "newer", "no config"])
def test_damaged_artifacts(halftone: Halftone, quantized: Path, tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(quantized, tmp_path / "damaged"))
    weights, config = folder / "unet/diffusion_pytorch_model.safetensors", folder / "unet/config.json"
    content = bytearray(weights.read_bytes())
    if damage == "truncated":
        weights.write_bytes(content[:-100])
    elif damage == "flipped":
        content[-10] ^= 1
        weights.write_bytes(content)
    elif damage == "newer":
        data = json.loads(config.read_text())
        data["quantization_config"]["version"] = 99
        config.write_text(json.dumps(data))
    else:
        (folder / "model_index.json").unlink()
    refused(halftone, [], "inspect", folder)
    refused(halftone, [], "generate", folder, "-o", tmp_path / "x.png")


def test_debug_shows_the_traceback(halftone: Halftone) -> None:
    done = halftone("inspect", "zoo:nothing", "--debug")
    assert done.code == 2 and "Traceback" in done.err and "error: zoo:nothing" in done.err


def test_calibration_errors_are_not_the_requests_fault(halftone: Halftone, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise CalibrationError("calibration", "inputs that vary", "the constant 0")

    monkeypatch.setattr(models, "open_model", fail)
    refused(halftone, ["the constant 0"], "inspect", "it", code=3)


def test_a_defect_is_not_disguised(halftone: Halftone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "open_model", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        app.run(["inspect", "it"])


def test_sizes_and_expectations() -> None:
    assert byte_count("2GB") == 2 * 10**9 and byte_count("3 KiB") == 3072
    for text in ("0", "GB", "-1GB", "2XB"):
        with pytest.raises(ConfigError, match="--memory"):
            byte_count(text)
    assert parse_expectation("fd<3").met(2.9) and not parse_expectation("fd<3").met(3.0)


def test_what_is_refused_beforehand_is_what_would_be_refused_later(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    files.check_output(tmp_path / "new")
    with pytest.raises(files.OutputError, match="a file"):
        files.check_output(tmp_path / "file", overwrite=True)
    with pytest.raises(files.OutputError, match="--overwrite"):
        files.check_output(tmp_path)


def test_conditions_of_pipelines() -> None:
    class Text:
        def __call__(self, prompt: str) -> None: ...

    class Classes:
        components = {"transformer": Layerless()}

        def __call__(self, class_labels: list[int]) -> None: ...

    assert models.conditions(Text(), 3, ["a", "b"]) == {"prompt": ["a", "b", "a"]}
    with pytest.raises(ConfigError, match="--prompt TEXT"):
        models.conditions(Text(), 3)
    assert models.conditions(Classes(), 2, label=7) == {"class_labels": [7, 7]}
    with pytest.raises(ConfigError, match="--label N"):
        models.conditions(Classes(), 2)
    Classes.components["transformer"].register_to_config(num_class_embeds=10)
    assert models.conditions(Classes(), 5) == {"class_labels": [0, 2, 4, 6, 8]}


def test_help_is_quick() -> None:
    code = "import sys; from halftone.cli.app import run; run(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "quantize" in done.stdout, done.stderr
