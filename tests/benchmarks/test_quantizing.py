"""The study of what quantizing takes, on a U-Net of some thousand parameters, and its page."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.cpu_unet import prepare, workshop
from benchmarks.quantizing.__main__ import main
from benchmarks.quantizing.blocks import Given
from benchmarks.quantizing.bounded import Bounded, Told
from benchmarks.quantizing.render import PAGE, page, render
from benchmarks.quantizing.run import run
from benchmarks.quantizing.settings import DOCS, RESULTS, SECTIONS, Settings
from benchmarks.quantizing.whole import Command
from benchmarks.records import rows_of

SMALL = {
    "sample_size": 16, "layers_per_block": 1, "block_out_channels": (32, 64), "cross_attention_dim": 32,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc"),
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    place = tmp_path_factory.mktemp("study")
    given = Settings(
        commands=(Command(recipe="rtn-w4a8", budget="demo", steps=2, memory="1GB"),), given=Given((1, 3), 128),
        bounded=Bounded(memory="100KB", steps=2), results=place / "results", cache=place / "cache", sd15=tuple(SMALL.items()),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workshop, "prepared", lambda python, spec, log, threads: prepare.make(spec))
        said: list[str] = []
        assert run(given, said.append) == [], said
    return given


def test_a_whole_quantization_is_watched_beside_its_plan(settings: Settings) -> None:
    found = json.loads((settings.results / "whole" / "rtn-w4a8-demo.json").read_text(encoding="utf-8"))["metrics"]
    assert sum(found["by_step"].values()) < found["seconds"]
    assert found["peak"] > 100e6, "PyTorch alone takes that"
    assert 0 < found["disk_bytes"] < found["float_bytes"] / 4
    assert found["plan"]["memory"]["held"] > 0 and len(found["plan"]["seconds"]["total"]) == 2
    assert not (settings.cache / "quantizing").exists(), "nothing is left behind"


def test_every_unit_is_timed_and_extrapolated(settings: Settings) -> None:
    row = json.loads((settings.results / "blocks" / "q-diffusion-w4a8-cpu.json").read_text(encoding="utf-8"))
    found = row["metrics"]
    assert found["iterations"] == 20000 and found["batch"] == 32, "the paper's"
    assert any("mid_block" in path for path in found["units"]) and "conv_out" in found["units"]
    for unit in found["units"].values():
        assert all(seconds > 0 for seconds in unit["seconds"].values())
        assert unit["iteration"] == pytest.approx(unit["fixed"] + 32 * unit["sample"], abs=1e-3)
    assert found["seconds"] == pytest.approx(20000 * sum(u["iteration"] for u in found["units"].values()), rel=1e-2)


def test_rows_that_are_there_are_not_measured_again(settings: Settings) -> None:
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workshop, "prepared", lambda *_: pytest.fail("the model is there"))
        assert run(settings, said.append) == []
    assert [line.endswith("there already") for line in said] == [True, True, True, True]


def test_bounded_reconstruction_is_killed_and_resumed(settings: Settings) -> None:
    found = json.loads((settings.results / "bounded" / "reconstruction.json").read_text(encoding="utf-8"))["metrics"]
    assert found["same_bytes"] and found["blocks"] >= found["killed_at"] > 0
    assert found["peak"] > 100e6 and found["disk"] > 100e3
    assert set(found["command_seconds"]) == {"whole", "killed", "resumed"}


def test_promises_are_read_from_what_the_command_says() -> None:
    told = Told()
    for line in (
        "reconstructing 0/4 blocks, 0:00 elapsed, ETA unknown",
        "recording calls 3/9 samples, 0:01 elapsed, 0:02 left",
        "reconstructing 1/4 blocks, 0:20 elapsed, 1:00 left | conv_in 3/4 iterations, 0:01 elapsed, 0:01 left",
        "reconstructing 2/4 blocks, 0:40 elapsed, 0:40 left, conv_in: error 0.5 of before",
        "reconstructing 4/4 blocks, 1:40 elapsed, done",
    ):
        told.hear(line)
    assert told.share == 1.0
    assert told.promises() == {"0.1": 0.8, "0.25": 0.8}


def test_arithmetic_is_that_of_the_paper(settings: Settings) -> None:
    found = json.loads((settings.results / "arithmetic" / "q-diffusion-w4a8.json").read_text(encoding="utf-8"))[
        "metrics"
    ]
    assert found["macs"] == 3 * 32 * found["forward_macs"] > 0 and found["iterations"] == 20000
    committed = RESULTS / "arithmetic" / "q-diffusion-w4a8.json"
    # What a call of Stable Diffusion's U-Net is known to take at 512 pixels, with its attention.
    assert json.loads(committed.read_text(encoding="utf-8"))["metrics"]["forward_macs"] == pytest.approx(
        4.0e11, rel=0.05
    )


def test_what_fails_is_named(settings: Settings) -> None:
    wrong = replace(settings, sections=("whole",), commands=(Command(recipe="rtn-w4a8", memory="much"),))
    said: list[str] = []
    assert run(wrong, said.append) == ["whole/rtn-w4a8-fast"]
    assert "--memory" in said[-1]


def test_the_page_has_a_table_for_each_section(settings: Settings, tmp_path: Path) -> None:
    assert render(settings.results, tmp_path) == [f"wrote {PAGE}"]
    text = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert "| rtn-w4a8, demo |" in text and "20000 iterations of batch 32" in text and "`mid_block" in text
    assert "## On a GPU" in text and "Not timed" in text
    assert render(tmp_path / "nothing", tmp_path)[0].startswith("no rows in")


def test_a_wrong_section_is_refused() -> None:
    with pytest.raises(SystemExit, match="unknown bloks"):
        main(["run", "--only", "bloks"])


def test_the_committed_page_is_that_of_the_committed_rows() -> None:
    sections = rows_of(RESULTS, SECTIONS)
    if not sections:
        pytest.skip("no rows yet")
    assert (DOCS / PAGE).read_text(encoding="utf-8") == page(sections)
