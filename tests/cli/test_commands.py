"""Every command on a tiny model: what it writes, prints and returns."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMPipeline
from PIL import Image
from tests.tiny import pipeline, tiny_unet

from halftone.foundation.errors import ConfigError
from halftone.kernels.native import product
from halftone.models import roles
from halftone.recipes import load
from halftone.zoo import catalog

from .conftest import QUICK, Halftone


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture).astype(int)


@pytest.fixture
def artifact(quantized: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(quantized, tmp_path / "artifact"))


def test_quantize_writes_a_folder_that_diffusers_loads(halftone: Halftone, model: Path, tmp_path: Path) -> None:
    done = halftone("quantize", model, *QUICK, "-o", tmp_path / "out", "--json", "--memory", "1GB")
    assert done.code == 0, done.err
    assert done.json["output"] == str(tmp_path / "out") and done.json["sizes"]["file"] > 0
    assert done.json["seconds"].keys() == {"record", *done.json["report"]["steps"]}
    pipe = DDIMPipeline.from_pretrained(tmp_path / "out")
    assert pipe.unet.conv_in.scheme.weight.format == "uint8"
    assert pipe.unet.mid_block.resnets[0].conv1.scheme.weight.format == "uint4"
    report = json.loads((tmp_path / "out/halftone/quantize.json").read_text())
    assert "library_name: diffusers" in (tmp_path / "out/README.md").read_text()
    assert report == done.json["report"] and report["recipe"]["name"] == "rtn-w4a8" and report["budget"] == "fast"
    assert not (tmp_path / "out.work").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_activations_may_be_held_in_half_the_space(halftone: Halftone, model: Path, tmp_path: Path) -> None:
    how = ("quantize", model, "--recipe", "gptq-w4a8", *QUICK[2:], "--memory", "50kB")
    made, errors = {}, {}
    for dtype in ("float32", "bfloat16"):
        done = halftone(*how, "--keep-as", dtype, "-o", tmp_path / dtype, "--json")
        assert done.code == 0, done.err
        errors[dtype] = sum(each["error"] for each in done.json["report"]["steps"]["gptq"]["layers"].values())
        made[dtype] = DDIMPipeline.from_pretrained(tmp_path / dtype).unet.mid_block.resnets[0].conv1.weight
    assert not torch.equal(*made.values()), "what is rounded on the way is rounded to other codes here and there"
    assert errors["bfloat16"] == pytest.approx(errors["float32"], rel=0.05)


def test_quantize_prints_the_resolved_recipe(halftone: Halftone, model: Path, tmp_path: Path) -> None:
    done = halftone("quantize", model, *QUICK, "-o", tmp_path / "out", "--json")
    assert "  name: rtn-w4a8" in done.err and "    samples: 8" in done.err, "what was set is in it"
    assert done.json["report"]["recipe"]["expects"]["psnr"] > 0


def test_another_sampling_than_the_calibrated_one_is_told(halftone: Halftone, quantized: Path, tmp_path: Path) -> None:
    same = halftone("generate", quantized, "-n", 1, "--steps", 3, "-o", tmp_path / "a.png")
    other = halftone("generate", quantized, "-n", 1, "--steps", 2, "-o", tmp_path / "b.png")
    assert "another sampling" not in same.err
    assert "note: another sampling than the model was calibrated for: steps 2 (calibrated: 3)" in other.err


def test_quantize_says_what_to_do_next(halftone: Halftone, model: Path, tmp_path: Path) -> None:
    done = halftone("quantize", model, *QUICK, "-o", tmp_path / "out")
    assert done.code == 0 and "in float32 ->" in done.out
    assert f"halftone evaluate {tmp_path / 'out'} --against {model}" in done.out
    assert "onednn_int8 (integer)" in done.out or "reference" in done.out


def test_every_method_of_the_paper(halftone: Halftone, model: Path, tmp_path: Path) -> None:
    changes = ("calibration.samples=8", "calibration.select.steps=2", "steps.activations.samples=8")
    changes += tuple(
        f"steps.{step}.{what}" for step in ("reconstruct", "learn_steps") for what in ("iterations=2", "batch=4")
    )
    options = [part for change in changes for part in ("--set", change)]
    recipe = ("--recipe", "q-diffusion-w4a8-learned-steps", "--budget", "demo", "--steps", 3)
    done = halftone("quantize", model, *recipe, *options, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert list(done.json["report"]["steps"]) == list(load("q-diffusion-w4a8-learned-steps").steps)


def test_quantize_replaces_only_when_asked(halftone: Halftone, model: Path, artifact: Path) -> None:
    assert halftone("quantize", model, *QUICK, "-o", artifact).code == 2
    done = halftone("quantize", model, *QUICK, "-o", artifact, "--overwrite", "--seed", 1)
    assert done.code == 0, done.err


def test_generate_writes_a_grid(halftone: Halftone, quantized: Path, tmp_path: Path) -> None:
    file = tmp_path / "grid.png"
    done = halftone("generate", quantized, "-n", 3, "--steps", 2, "--seed", 1, "-o", file)
    assert done.code == 0, done.err
    assert pixels(file).shape == (2 * (64 + 2) + 2, 2 * (64 + 2) + 2)
    again = halftone("generate", quantized, "-n", 3, "--steps", 2, "--seed", 1, "-o", file)
    assert again.code == 2 and "--overwrite" in again.err
    other = halftone("generate", quantized, "-n", 3, "--steps", 2, "--seed", 1, "--batch", 1, "-o", tmp_path / "b.png")
    assert other.code == 0
    assert np.abs(pixels(file) - pixels(tmp_path / "b.png")).max() <= 1


def test_pictures_of_prompts_are_labelled() -> None:
    from halftone.cli.generate import grid

    plain = grid(np.zeros((2, 3, 70, 70), dtype=np.float32))
    labelled = grid(np.zeros((2, 3, 70, 70), dtype=np.float32), ["a lighthouse", "日本 and a very long prompt " * 9])
    assert labelled.height > plain.height and labelled.width == plain.width
    strip, other = (np.asarray(labelled)[73:, left : left + 70] for left in (2, 74))
    # Letters, and others below the other picture; below nothing there is nothing.
    assert (strip < 128).sum() > 100 and (other < 128).sum() > 100 and not np.array_equal(strip, other)
    blank = grid(np.zeros((2, 3, 70, 70), dtype=np.float32), ["", ""])
    assert (np.asarray(blank)[73:] == 255).all()
    with pytest.raises(ConfigError, match="one or three channels"):
        grid(np.zeros((2, 4, 8, 8), dtype=np.float32))


def test_evaluate_measures_and_keeps(halftone: Halftone, model: Path, artifact: Path) -> None:
    how = ("--against", model, "--samples", 6, "--steps", 2, "--batch", 4, "--trail", 2)
    done = halftone("evaluate", artifact, *how, "--expect", "psnr>=1", "--json")
    assert done.code == 0, done.err
    assert done.json["distribution"] is None and done.json["paired"]["psnr"]["value"] > 1
    assert len(done.json["trail"]["timesteps"]) == 2 and done.json["expectations"][0]["met"]
    kept = json.loads((artifact / "halftone/evaluation.json").read_text())
    assert kept == done.json
    with np.load(artifact / "halftone/samples.npz") as pairs:
        assert pairs["quantized"].shape == pairs["float"].shape == (6, 1, 8, 8)
        assert pairs["quantized"].dtype == np.uint8
    assert json.loads((artifact / "halftone/ranges.json").read_text())["layers"]
    DDIMPipeline.from_pretrained(artifact)  # nothing in the way of loading


def test_an_expectation_that_is_not_met(halftone: Halftone, model: Path, quantized: Path) -> None:
    how = ("--against", model, "--samples", 2, "--steps", 2, "--trail", 0, "--no-keep")
    done = halftone("evaluate", quantized, *how, "--expect", "psnr>=200", "--expect", "latent_mse < 1000")
    assert done.code == 3, done.err
    assert "expected psnr>=200: NOT met" in done.out and "expected latent_mse < 1000: met" in done.out
    assert not (quantized / "halftone/evaluation.json").exists()


def test_evaluate_a_float_model_alone(halftone: Halftone, model: Path) -> None:
    done = halftone("evaluate", model, "--samples", 2, "--steps", 2)
    assert done.code == 0 and "give --against" in done.out and not (model / "halftone").exists()


def test_another_model_than_the_original_is_named(
    halftone: Halftone, model: Path, artifact: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    pipeline(tiny_unet(seed=3)).save_pretrained(other)
    how = ("--samples", 2, "--steps", 3, "--trail", 0, "--json")
    assert halftone("evaluate", artifact, "--against", model, *how).json["notes"] == []
    done = halftone("evaluate", artifact, "--against", other, *how)
    assert done.json["notes"] == ["other is not the float model that artifact was made from: its weights differ"]
    assert f"warning: {done.json['notes'][0]}" in done.err
    quick = ("--rounds", 2, "--warmup", 0, "--no-memory", "--json")
    done = halftone("bench", artifact, "--against", artifact, *quick)
    assert done.json["notes"] == ["artifact is itself quantized: nothing here is measured against a float model"]
    assert halftone("report", artifact, "-o", tmp_path / "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    assert "was made from: its weights differ" in page and "is itself quantized" in page


def test_bench_compares_in_one_run(halftone: Halftone, model: Path, artifact: Path) -> None:
    how = ("--rounds", 2, "--warmup", 1, "--no-memory")
    done = halftone("bench", artifact, "--against", model, "--engine", "simulate", "--engine", "auto", *how, "--json")
    assert done.code == 0, done.err
    assert [row["name"] for row in done.json["rows"]] == ["float32", "bfloat16", "simulate", "auto"]
    assert done.json["rows"][2]["speedup"].keys() == {"float32", "bfloat16"}
    assert json.loads((artifact / "halftone/bench.json").read_text()) == done.json


def test_bench_of_a_float_model(halftone: Halftone, model: Path) -> None:
    done = halftone("bench", model, "--rounds", 2, "--warmup", 0, "--no-memory")
    assert done.code == 0, done.err
    assert "bfloat16" in done.out and "ms a call" in done.out


def test_inspect_tells_each_layer(halftone: Halftone, artifact: Path) -> None:
    found = halftone("inspect", artifact, "--json").json
    assert found["recipe"] == "rtn-w4a8" and found["totals"]["disagreeing"] == []
    layer = next(each for each in found["layers"] if each["path"] == "conv_in")
    assert (layer["role"], layer["weight"], layer["input"]) == ("conv_in", "uint8", "uint16")
    assert layer["difference"] <= layer["tolerance"] and layer["bytes"] > 0
    assert {each["site"] for each in found["operands"]} == {"q", "k", "v", "probs"}
    assert json.loads((artifact / "halftone/inspection.json").read_text()) == found
    shown = halftone("inspect", artifact, "--engine", "simulate")
    assert shown.code == 0 and "Attention operands, simulated" in shown.out and "reference" in shown.out
    assert "?" not in shown.out, "this architecture has a table"
    assert json.loads((artifact / "halftone/inspection.json").read_text()) == found


def test_inspect_a_float_model(halftone: Halftone, model: Path) -> None:
    done = halftone("inspect", model)
    assert done.code == 0 and "not quantized" in done.out and "resnet.conv1" in done.out


def test_recipes(halftone: Halftone, tmp_path: Path) -> None:
    assert "q-diffusion-w4a8" in halftone("recipes").out
    assert len(halftone("recipes", "--json").json["recipes"]) > 5
    change = ("--budget", "demo", "--set", "steps.reconstruct.iterations=7")
    shown = halftone("recipes", "show", "q-diffusion-w4a8", *change)
    file = tmp_path / "mine.yaml"
    file.write_text(shown.out)
    assert yaml.safe_load(shown.out)["steps"]["reconstruct"]["iterations"] == 7
    original = load("q-diffusion-w4a8", "demo", [change[-1]])
    again = load(str(file), "fast")
    assert (again.policy, again.steps, again.calibration) == (original.policy, original.steps, original.calibration)


def test_zoo(halftone: Halftone, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "fashion-unet" in halftone("zoo").out
    assert {each["name"] for each in halftone("zoo", "--json").json["models"]} == set(catalog.names())
    monkeypatch.setattr(catalog, "WEIGHTS", tmp_path)
    absent = halftone("inspect", "zoo:fashion-unet")
    assert absent.code == 2 and "halftone zoo train fashion-unet --data" in absent.err
    shutil.copytree(model, tmp_path / "fashion-unet")
    assert halftone("inspect", "zoo:fashion-unet", "--no-agreement").code == 0
    assert "feature network" in halftone("inspect", "zoo:fashion-classifier").err


def test_doctor(halftone: Halftone) -> None:
    assert halftone("doctor", "--json").json["engines"].keys() >= {"simulate", "torch"}
    assert "engine     simulate: runs" in halftone("doctor").out


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, "ONEDNN_MAX_CPU_ISA=AVX2 leaves AVX512-VNNI out"),
        ({"HALFTONE_NATIVE": "0"}, "HALFTONE_NATIVE=0"),
    ],
    ids=str,
)
def test_doctor_says_what_a_mask_leaves_out(mask: dict[str, str], said: str) -> None:
    if product.why_none() is not None:
        pytest.skip(f"nothing to leave out: {product.why_none()}")
    command = [sys.executable, "-W", "ignore", "-m", "halftone", "doctor"]
    done = subprocess.run(command, env={**os.environ, **mask}, capture_output=True, text=True, check=True)
    assert said in done.stdout


def test_report(halftone: Halftone, artifact: Path, tmp_path: Path) -> None:
    assert halftone("inspect", artifact).code == 0
    done = halftone("report", artifact, "-o", tmp_path / "page.html")
    assert done.code == 0, done.err
    assert "<html" in (tmp_path / "page.html").read_text()
    assert halftone("report", artifact, "-o", tmp_path / "page.html").code == 2


def test_inspect_marks_roles_that_were_inferred(
    halftone: Halftone, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roles, "table_of", lambda name: None)
    done = halftone("inspect", model)
    assert done.code == 0
    assert "conv_in?" in done.out and "resnet.conv1?" in done.out
