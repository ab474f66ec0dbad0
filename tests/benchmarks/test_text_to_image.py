"""The text-to-image study's harness on a pipeline that trains in seconds: every kind of use, records, page."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.records import README
from benchmarks.text_to_image import plan
from benchmarks.text_to_image.__main__ import main
from benchmarks.text_to_image.findings import findings, lost, tipped, verdict
from benchmarks.text_to_image.render import PAGE, page, read, render
from benchmarks.text_to_image.run import path_of, run
from benchmarks.text_to_image.settings import DOCS, RESULTS, SECTIONS, Settings
from benchmarks.text_to_image.uses import USES, Use, arguments
from benchmarks.text_to_image.workshop import Workshop
from PIL import Image
from tests.emoji import SMALL, write_emoji

from halftone.cli.app import run as halftone
from halftone.foundation.errors import ConfigError
from halftone.recipes import load
from halftone.zoo import emoji_sd

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers' schedulers


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A study of a pipeline with a LoRA and a ControlNet, all of them trained for a second."""
    place = tmp_path_factory.mktemp("study")
    data = ["--data", str(write_emoji(place / "data")), "--minutes", "0.01", "--samples", "4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emoji_sd, "STANDARD", SMALL)
        assert halftone(["zoo", "train", "emoji-sd", *data, "-o", str(place / "model")]) == 0
        for name in ("emoji-style-lora", "emoji-controlnet"):
            base = ["--base", str(place / "model")]
            assert halftone(["zoo", "train", name, *data, *base, "-o", str(place / name)]) == 0
    return Settings(
        prompts=3, seeds=(0,), steps=3, batch=3, rounds=2, budget="demo", model=str(place / "model"),
        lora=place / "emoji-style-lora", controlnet=place / "emoji-controlnet",
        results=place / "results", cache=place / "cache",
    )  # fmt: skip


def test_every_row_of_the_study_has_a_recipe_that_loads(settings: Settings) -> None:
    rows = plan.rows(settings)
    assert {row.section for row in rows} == set(SECTIONS)
    assert {row.use for row in rows} == set(USES)
    for row in rows:
        if row.recipe is not None:
            load(row.recipe, "fast")
    without = plan.rows(replace(settings, lora=None, controlnet=None))
    assert not any("LoRA" in row.use or "ControlNet" in row.use for row in without)


def test_calibration_sees_one_caption_of_each_concept_that_is_not_evaluated(settings: Settings) -> None:
    known = Workshop(settings).known
    concepts = [known.concept(text) for text in known.others]
    assert concepts and len(set(concepts)) == len(concepts)
    assert not set(concepts) & {known.concept(prompt) for prompt in known.prompts}
    assert {known.concepts[number] for number in known.plain} == set(known.concepts)


def test_pictures_to_start_from(settings: Settings) -> None:
    pictures = np.zeros((3, 3, 16, 16), np.float32)
    pictures[0] = 1.0
    each, call = arguments(Use(kind="img2img"), ["a", "b", "c"], pictures, settings)
    assert [np.asarray(image).max() for image in each["image"]] == [0, 255, 0] and call["guidance_scale"] == 5.0
    each, call = arguments(Use(kind="inpaint", guidance=1.0), ["a", "b", "c"], pictures, settings)
    assert [np.asarray(image).max() for image in each["image"]] == [255, 0, 0], "of the prompt itself"
    mask = np.asarray(each["mask_image"][0])
    assert mask[:, :8].max() == 0 and mask[:, 8:].min() == 255 and call["guidance_scale"] == 1.0
    with pytest.raises(ConfigError, match="pictures to start from"):
        arguments(Use(kind="controlnet"), ["a"], None, settings)


def test_the_study_from_end_to_end(settings: Settings, tmp_path: Path) -> None:
    wanted = "quality/float", "quality/rtn-w8a8", "choices/rtn-w4a8", "choices/rtn-w4a8-sinks"
    said: list[str] = []
    for pattern in wanted:
        assert run(replace(settings, pattern=pattern), said.append) == []
    record = json.loads((settings.results / "quality/rtn-w8a8.json").read_text())
    assert record["protocol"]["prompts"] == 3 and record["recipe"]["name"] == "rtn-w8a8"
    assert len(record["metrics"]["image_mse"]) == 3 and record["metrics"]["paired"]["psnr"]["value"] > 5
    assert record["metrics"]["components"]["unet"]["quantized"] > 0
    (seen,) = record["metrics"]["seen"]
    assert seen["alignment"]["prompts"] == 3 and seen["kernel"]["features"] == "model latents"
    again: list[str] = []
    assert (
        run(replace(settings, pattern="quality/*t*8a8"), again.append) == [] and "1 there already, 0 to do" in again[-1]
    )
    assert "moved most" not in page(read(settings.results), []), "no picture of a Q-Diffusion row yet"
    assert any(line.startswith("wrote") for line in render(settings.results, tmp_path))
    text = (tmp_path / PAGE).read_text()
    assert "| linear, W8A8 |" in text and "| token sinks in float | linear, W4A8 |" in text
    # What the linear row found in the float model decides whether GPTQ rounds a second time.
    workshop, rows = Workshop(settings), {row.name: row for row in plan.rows(settings) if row.section != "uses"}
    linear, kept = rows["rtn-w4a8-sinks"], rows["gptq-w4a8-sinks"]
    facts = workshop.artifact_of(linear) / "quantize.json"
    for found in (0, 1):
        facts.write_text(json.dumps({"sinks": {"path": found}}))
        same = workshop.artifact_of(kept) == workshop.artifact_of(rows["gptq-w4a8"])
        assert same == (not found)


@pytest.mark.parametrize("use", ["image to image", "inpainting", "LoRA, strength 0.5", "ControlNet", "long prompts"])
def test_every_use_of_the_float_model_draws(settings: Settings, use: str) -> None:
    drawn = Workshop(settings).float_samples(use)
    assert drawn[0].images.shape == (3, 3, 16, 16) and np.isfinite(drawn[0].images).all()
    assert not np.array_equal(drawn[0].images, Workshop(settings).float_samples("short prompts")[0].images)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*an input that calibration did not see")  # which the study measures
@pytest.mark.parametrize("use", ["image-to-image", "inpainting", "lora-strength-1", "controlnet"])
def test_every_use_of_a_quantized_model_is_measured_beside_the_float_one(
    settings: Settings, tmp_path: Path, use: str
) -> None:
    said: list[str] = []
    assert run(replace(settings, pattern=f"uses/{use}-[fw]*"), said.append) == [], said
    row, reference = (
        json.loads((settings.results / f"uses/{use}-{bits}.json").read_text()) for bits in ("w8a8", "float")
    )
    assert row["metrics"]["paired"]["psnr"]["value"] > 5 and len(row["metrics"]["moved"]) == 3
    assert (row["metrics"]["paired"]["latent_mse"] is None) == (use == "inpainting")
    assert bool(row["protocol"]["attached"]) == (use in ("lora-strength-1", "controlnet"))
    obeyed = {"lora-strength-1": {"style_share"}, "controlnet": {"overlap"}}.get(use, set())
    assert set(row["metrics"]["obeyed"]) == set(reference["metrics"]["obeyed"]) == obeyed
    assert np.shape(row["metrics"]["seen"][0]["ranks"]) == (1, 3)
    points = lost(row, reference)
    assert points.low <= points.value <= points.high
    shown = use in ("lora-strength-1", "controlnet")
    render(settings.results, tmp_path)
    assert (tmp_path / f"text-to-image-{use}-w8a8.png").exists() == shown
    if shown:
        with Image.open(tmp_path / f"text-to-image-{use}-w8a8.png") as picture:
            assert len(np.unique(np.asarray(picture))) > 20
        assert "## Adapters on the quantized model" in (tmp_path / PAGE).read_text()
    text = page(read(settings.results), [])
    assert "## Uses" in text and ("How well what is put on" in text) >= bool(obeyed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*an input that calibration did not see")
def test_a_controlnet_is_quantized_alone_and_together_with_the_unet(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    # What a model draws that was trained for a second fills every mask.
    monkeypatch.setattr("benchmarks.text_to_image.uses.masks", lambda images: (images > images.mean()).float())
    settings = replace(settings, cache=settings.cache / "masks", results=settings.results / "masks")
    for name in ("controlnet-float", "controlnet-it-alone-quantized-w8a8", "controlnet-both-quantized-w8a8"):
        assert run(replace(settings, pattern=f"uses/{name}"), said.append) == [], said
    alone, both = (
        json.loads((settings.results / f"uses/controlnet-{what}-quantized-w8a8.json").read_text())["metrics"]
        for what in ("it-alone", "both")
    )
    assert "engine" not in alone and both["engine"]
    assert alone["paired"]["psnr"]["value"] > both["paired"]["psnr"]["value"]
    assert alone["obeyed"]["overlap"] > 0


@pytest.mark.slow
def test_times_and_the_pairs_that_moved_most(settings: Settings, tmp_path: Path) -> None:
    said: list[str] = []
    assert run(replace(settings, pattern="quality/q-diffusion-w8a8"), said.append) == [], said
    assert run(replace(settings, pattern="latency/*"), said.append) == [], said
    found = json.loads((settings.results / "latency/latency.json").read_text())["metrics"]["bench"]
    names = [each["name"] for each in found["2"]["rows"]]
    assert names[:2] == ["float32", "bfloat16"] and "Q-Diffusion, W4A8" in names and "linear, W8A8" in names
    render(settings.results, tmp_path)
    text = (tmp_path / PAGE).read_text()
    assert "## The pairs that moved most" in text and "## Speed and memory" in text
    assert (tmp_path / "text-to-image-moved-w8a8.png").stat().st_size > 500


def test_a_row_that_breaks_does_not_take_the_others_along(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("benchmarks.text_to_image.run.measure", lambda row, *_: {}[row.name])
    broken = replace(settings, pattern="quality/*", results=settings.results / "broken")
    assert len(run(broken, said.append)) == 7 and not (settings.results / "broken").exists()


def seen(*ranks: list[int]) -> dict:
    found = {
        "alignment": {"features": "own", "top1_by_seed": [float(np.mean(np.array(each) < 1)) for each in ranks]},
        "ranks": ranks,
    }
    return {"metrics": {"seen": [found]}}


def test_verdicts_come_from_intervals_over_prompts() -> None:
    right, half = [0] * 100, [0, 1] * 50
    assert verdict(lost(seen(right), seen(right)), seen(right), "w8a8") == "surely met"
    assert verdict(lost(seen(half), seen(right)), seen(right), "w4a8") == "surely missed"
    one = [[1, *right[1:]], right]
    points = lost(seen(*one), seen(right, right))
    assert points.value == pytest.approx(0.5) and verdict(points, seen(right), "w8a8") == "met"
    assert verdict(replace(points, value=1.5, high=4.0), seen(right), "w8a8") == "missed"
    wrong = [5] * 100
    assert verdict(lost(seen(wrong), seen(wrong)), seen(wrong), "w8a8") == "none"


def test_what_tips_is_counted_both_ways() -> None:
    before, after = np.array([[0, 0, 0, 3]]), np.array([[0, 2, 9, 0]])
    found = tipped(before, after)
    assert (found.fell, found.rose, found.near) == (50.0, 25.0, 50.0)
    assert tipped(before, before).near is None


def test_findings_name_what_is_missed_and_how() -> None:
    def row(use: str, method: str, bits: str, *found: list[int], **more: object) -> dict:
        made = seen(*found)
        made["metrics"] |= more
        return {"row": {"use": use, "method": method, "bits": bits}, **made}

    right = [0] * 50
    some = {"image_mse": [0.01] * 100, "moved": [0.02] * 98 + [0.9] * 2}
    quality = {
        "float": row("short prompts", "float", "float", right, right, between_seeds={"moved": [0.5] * 50}),
        "mine": row("short prompts", "Q-Diffusion", "w8a8", right, right, **some),
        "linear": row("short prompts", "linear", "w8a8", right, [1] * 50, **{**some, "image_mse": [0.1] * 100}),
    }
    worse = [0] * 40 + [2] * 5 + [7] * 5
    sampler = "DPM-Solver++, 10 steps"
    uses = {
        "float": row(sampler, "float", "float", right, right),
        "mine": row(sampler, "Q-Diffusion", "w8a8", worse, worse),
        "again": row(f"{sampler}, recalibrated", "Q-Diffusion", "w8a8", right, right),
    }
    text = "\n".join(findings({"quality": quality, "uses": uses}))
    assert (
        "top 1, by own, that W8A8 loses in any use: at most 1." in text
        and "***Not met:*** in 2 of 3 uses, surely in 2" in text
        and "are not measured yet" in text
    )
    assert f"*{sampler}*, surely missed: 20.0 [" in text and "those that fell, 50 %" in text
    assert "Calibrated with this sampler: 0.0 [0.0, 0.0] points lost" in text
    assert (
        "nearer to the float model's" in text
        and "by +10.0 dB of PSNR [+10.0, +10.0]" in text
        and "nearest rounding 50.0 [" in text
    )
    assert "2.0 % of the pictures became other ones" in text and "Of those, 100 % show what is named" in text
    assert f"| {sampler} | 20.0 | 0.0 | 50 | - | - | - | 0.0, 0.0 |" in text
    assert findings({}) == []


@pytest.mark.slow
def test_a_use_of_a_recalibrated_model(settings: Settings) -> None:
    name = "uses/dpm-solver-10-steps-recalibrated-w8a8"
    assert run(replace(settings, pattern=name), lambda line: None) == []
    row = next(row for row in plan.rows(settings) if f"{row.section}/{row.name}" == name)
    assert json.loads(path_of(row, settings).read_text())["protocol"]["use"]["recalibrated"]


def test_the_command_refuses_what_is_no_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="unknown nothing"):
        main(["run", "--only", "nothing"])
    assert (
        main(["run", "--model", str(tmp_path), "--results", str(tmp_path / "r"), "--cache", str(tmp_path / "c")]) == 2
    )
    assert "pipeline" in capsys.readouterr().err
    assert main(["render", "--results", str(tmp_path / "r"), "--docs", str(tmp_path)]) == 0


def test_the_committed_page_is_the_rows(tmp_path: Path) -> None:
    if not read(RESULTS):
        assert not (DOCS / PAGE).exists(), "a page without rows"
        return
    readme = tmp_path / "README.md"
    readme.write_text(README.read_text(encoding="utf-8"), encoding="utf-8")
    render(RESULTS, tmp_path, readme)
    assert (tmp_path / PAGE).read_text() == (DOCS / PAGE).read_text()
    assert readme.read_text() == README.read_text(), "run: python -m benchmarks.text_to_image render"
