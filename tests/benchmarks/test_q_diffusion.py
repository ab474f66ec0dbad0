"""The study's harness on a pipeline of a few thousand parameters, and its pages against the committed rows."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.markdown import marks
from benchmarks.q_diffusion import findings, plan
from benchmarks.q_diffusion.__main__ import main
from benchmarks.q_diffusion.plots import pictures
from benchmarks.q_diffusion.record import Model, differences, path_of
from benchmarks.q_diffusion.render import PAGE, page, readme_block, render
from benchmarks.q_diffusion.results import Result, change, read, removed
from benchmarks.q_diffusion.run import run
from benchmarks.q_diffusion.settings import DOCS, RESULTS, SECTIONS, Settings
from benchmarks.records import README
from tests.tiny import NO_ATTENTION, pipeline, tiny_unet

from halftone.recipes import load


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    place = tmp_path_factory.mktemp("study")
    unet = tiny_unet(blocks=NO_ATTENTION, sample_size=16, block_out_channels=(8, 8))
    pipeline(unet).save_pretrained(place / "model")
    given = {"samples": 4, "steps": 3, "fast_steps": 3, "batch": 4, "budget": "demo", "seeds": (0,)}
    return Settings(model=str(place / "model"), results=place / "results", cache=place / "cache", **given)


def _only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let the study consist of these rows."""
    everything = plan.rows

    def few(settings: Settings) -> list[plan.Row]:
        return [row for row in everything(settings) if f"{row.section}/{row.name}" in names]

    monkeypatch.setattr("benchmarks.q_diffusion.run.rows", few)


def test_every_row_of_the_study_has_a_recipe_that_loads() -> None:
    rows = plan.rows(Settings())
    assert {row.section for row in rows} == set(SECTIONS)
    for row in rows:
        if row.recipe is not None:
            load(row.recipe, row.budget, list(row.overrides))
    assert [row.name for row in rows[:2]] == ["float", "q-diffusion-w4a8-seed0"]
    many = ("headline", "budgets")
    assert {row.samples for row in rows if row.section in many and row.seed == 0} == {5000}
    fewer = {row.section: row.samples for row in rows if row.section not in many or row.seed != 0}
    assert fewer.pop("haze") == 1000
    assert set(fewer.values()) == {2000}


def test_the_readme_lists_every_section_with_its_rows() -> None:
    rows, text = plan.rows(Settings()), (Path(plan.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    listed = {cells[1].strip(" `"): cells for line in text.splitlines() if len(cells := line.split("|")) == 7}
    for section in SECTIONS:
        own = [row for row in rows if row.section == section]
        cells = listed[section]
        assert cells[3].split(";")[0].strip() == str(len(own)), section
        budgets = {row.budget for row in own if row.recipe is not None}
        assert cells[4].strip() == (", ".join(sorted(budgets)) or "-"), section
        expected = 256 if own[0].kind in ("trail", "ranges") else own[0].samples
        assert cells[5].split(";")[0].strip() == str(expected), section


@pytest.mark.slow
def test_the_harness_runs_and_goes_on_where_it_stopped(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        "headline/float",
        "headline/rtn-w4a8-seed0",
        "headline/gptq-w4a8-seed0",
        "trajectory/linear-w5a32",
        "ranges/float",
        "samplers/w4a8-ddim-to-dpm",
    ]
    quick = ("rtn-w4a8-seed0", "gptq-w4a8-seed0")
    _only(monkeypatch, *names[:3])
    said: list[str] = []
    assert run(replace(settings, sections=("headline",)), said.append) == []
    rows = read(settings.results)["headline"]
    assert set(rows) == {"float", *quick}
    for name in quick:
        data = rows[name].data
        assert data["recipe"]["name"] + "-seed0" == name and len(data["recipe"]["sha256"]) == 16
        assert data["metrics"]["evaluation"]["paired"]["psnr"]["value"] > 0
        assert data["metrics"]["agreement_with_simulate"]["psnr"] == "infinity" or (
            data["metrics"]["agreement_with_simulate"]["psnr"] > 30
        )
        assert data["metrics"]["disk_bytes"] < rows["float"].metrics["disk_bytes"]
        assert data["commit"].keys() == {"sha", "dirty"} and data["machine"]["torch"] == torch.__version__
    # Stopped here: the next run measures what is missing, and touches nothing else.
    before = {name: path_of_text(settings, name) for name in rows}
    _only(monkeypatch, *names[:5])
    said.clear()
    assert run(settings, said.append) == []
    assert "5 rows, 3 there already, 2 to do" in said
    assert {name: path_of_text(settings, name) for name in rows} == before
    trail = read(settings.results)["trajectory"]["linear-w5a32"].metrics["trail"]
    assert len(trail["x_mse"]) == 3 and trail["x_mse"][0] == 0.0 < trail["x_mse"][-1]
    ranges = read(settings.results)["ranges"]["float"].metrics
    assert ranges["ranges"]["layers"].keys() == ranges["roles"].keys()
    # Another protocol is another measurement.
    said.clear()
    _only(monkeypatch, "headline/float")
    run(replace(settings, samples=2, sections=("headline",)), said.append)
    assert "again: headline/float (other samples)" in said


@pytest.mark.slow
def test_rows_that_share_a_model_share_its_samples(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    _only(monkeypatch, "headline/float", "headline/rtn-w4a8-seed0", "edges/rtn-w4a8-wide")
    assert run(settings, lambda line: None) == []
    found = read(settings.results)
    first, second = found["headline"]["rtn-w4a8-seed0"].metrics, found["edges"]["rtn-w4a8-wide"].metrics
    assert first["evaluation"] == second["evaluation"] and first["image_mse"] == second["image_mse"]
    kept = [file for file in settings.cache.glob("models/rtn-w4a8-*/samples/*.npz")]
    assert len(kept) == 1
    with np.load(kept[0]) as stored:
        assert len(stored["images"]) == settings.samples


def path_of_text(settings: Settings, name: str) -> str:
    row = next(row for row in plan.rows(settings) if row.section == "headline" and row.name == name)
    return path_of(row, settings).read_text(encoding="utf-8")


def test_a_row_that_fails_is_named_and_the_others_go_on(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    row = plan.Row("headline", "broken", "quality", "demo", 2, "rtn-w8a8", ("policy.0.roles=nonsense",))
    fine = plan.Row("headline", "float-fine", "float", "demo", 2)
    monkeypatch.setattr("benchmarks.q_diffusion.run.rows", lambda settings: [row, fine])
    assert run(settings, lambda line: None) == ["headline/broken"]
    assert path_of(fine, settings).exists() and not path_of(row, settings).exists()


def test_wrong_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--model", str(tmp_path / "nothing"), "--only", "ranges"]) == 2
    assert "--model" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="unknown headlines"):
        main(["run", "--only", "headlines"])


def _row(errors: np.ndarray, **labels: str) -> Result:
    same = {"model": "m", "sampler": "ddim", "steps": 50, "noise_seed": 0}
    data = {"row": "r", "labels": labels, "protocol": same, "metrics": {"image_mse": errors.tolist()}, "budget": "fast"}
    return Result(data)


def test_verdicts_come_from_the_numbers() -> None:
    noise = np.random.default_rng(0).uniform(0.9, 1.1, 200)
    full = {"calibration": "uniform", "split": "auto", "reconstruction": "ada_round"}
    rows = {
        "full": _row(noise, bits="w4a8", **full),
        "none": _row(noise * 2, bits="w4a8", **{**full, "split": "none"}),
        "tenth": _row(noise * 1.001, bits="w4a8", **{**full, "calibration": "first-tenth"}),
    }
    by_claim = {found.claim: found for found in findings.ablation({"ablation": rows})}
    verdicts = {("split" in claim): found.verdict for claim, found in by_claim.items()}
    assert verdicts == {True: findings.SHOWS, False: findings.NOT}
    assert change(rows["none"], rows["full"]).value == pytest.approx(1.0)
    assert removed(rows["full"], rows["none"]).low == pytest.approx(0.5)


def test_a_share_counts_all_samples_where_only_some_errors_are_kept() -> None:
    def row(mse: float, kept: float) -> Result:
        interval = {"value": mse, "low": 0.9 * mse, "high": 1.2 * mse}
        found = _row(np.full(4, kept))
        found.data["protocol"] = {**found.protocol, "samples": 100}
        found.data["metrics"]["evaluation"] = {"paired": {"mse": interval}}
        return found

    share = removed(row(0.1, 0.5), row(1.0, 1.0))
    assert (share.value, share.low, share.high) == pytest.approx((0.9, 0.88, 0.91))
    few = [row(0.1, 0.5), row(1.0, 1.0)]
    for each in few:
        each.data["protocol"]["samples"] = 4  # all are kept: pairs decide
    assert removed(*few).value == pytest.approx(0.5)


def test_rendering_nothing_and_a_readme_without_markers(settings: Settings, tmp_path: Path) -> None:
    assert "nothing to render" in render(tmp_path, tmp_path / "docs", tmp_path / "README.md")[0]
    if not read(settings.results):
        pytest.skip("the harness was not run")
    readme = tmp_path / "README.md"
    readme.write_text("# A\n")
    said = render(settings.results, tmp_path / "docs", readme)
    assert (tmp_path / "docs" / PAGE).exists() and readme.read_text() == "# A\n"
    assert any("README" in line for line in said)


def test_the_pages_match_the_committed_rows() -> None:
    sections = read(RESULTS)
    if not sections or not (DOCS / PAGE).exists():
        pytest.skip("no results yet")
    drawings = pictures(sections)
    assert (DOCS / PAGE).read_text(encoding="utf-8") == page(sections, set(drawings)), (
        "run: python -m benchmarks.q_diffusion render"
    )
    for name, (mark, _) in drawings.items():
        assert mark in (DOCS / name).read_text(encoding="utf-8"), f"{name} shows other numbers"
    block, text, (begin, end) = readme_block(sections), README.read_text(encoding="utf-8"), marks("results")
    if block is not None:
        assert f"{begin}\n{block}{end}" in text


def test_the_plain_command_would_not_measure_committed_rows_again() -> None:
    """Whoever runs the command that the pages name gets these rows, not others; stale ones are named by the page."""
    settings = Settings()
    model = Model(
        settings.model, json.loads((RESULTS / "headline" / "float.json").read_text())["protocol"]["model"]["sha256"]
    )
    told = (DOCS / PAGE).read_text(encoding="utf-8")
    for row in plan.rows(settings):
        changed = differences(row, model, settings)
        # The latency's models are those of a budget.
        assert not changed or f"`{row.section}/{row.name}`" in told, (row.name, changed)


def test_committed_rows_say_where_they_come_from() -> None:
    for section in read(RESULTS).values():
        for row in section.values():
            text = json.dumps(row.data)
            assert row.data["commit"]["sha"] and row.data["machine"]["processor"]
            assert str(Path.home()) not in text
