"""The CPU study's harness on a U-Net of some thousand parameters: processes that take turns, records, page."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.cpu_unet import measure, plan, prepare, process, workshop
from benchmarks.cpu_unet.__main__ import main
from benchmarks.cpu_unet.cases import CASES, SD15, Case
from benchmarks.cpu_unet.contenders import ANCHORS, BASELINE, BY_NAME, CONTENDERS, RIVAL, TAKEN_APART, Contender
from benchmarks.cpu_unet.inputs import Inputs
from benchmarks.cpu_unet.levers import LEVERS
from benchmarks.cpu_unet.models import SD15_PARAMETERS, SD15_UNET
from benchmarks.cpu_unet.process import Failed
from benchmarks.cpu_unet.render import PAGE, read, render
from benchmarks.cpu_unet.run import run
from benchmarks.cpu_unet.settings import DOCS, RESULTS, Settings
from benchmarks.cpu_unet.workshop import Workshop
from benchmarks.records import README
from diffusers import UNet2DConditionModel
from tests.engines.conftest import quantized
from tests.tiny import pipeline, randomised, tiny_unet

from halftone.kernels.native import product
from halftone.nn.running import set_weights
from halftone.recipes import load

PUBLIC = Path(__file__).parents[1] / "models" / "configurations" / "sd-1.5-unet.json"
SMALL = {
    "sample_size": 32, "layers_per_block": 1, "block_out_channels": (32, 64), "cross_attention_dim": 32,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
CASE = Case(SD15, 128, 2)
NEEDS = {"openvino_ir": "nncf", "onnx_runtime": "onnxruntime", "sdnq_int8": "sdnq", "torchao_int8": "torchao"}
# What is prepared here calls diffusers and transformers in many ways that a later version will have otherwise.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")


def _prepared_here(python: Path, spec: dict, log: Path, threads: int) -> dict:
    """As the study does it, without waiting for a process that imports everything again; peers warn of too much for that."""
    if spec["make"] in ("profile", "levers") or spec.get("road") in NEEDS:
        return process.prepared(python, spec, log, threads)
    return prepare.make(spec)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A study of a small U-Net; peers are those that are installed beside the tests."""
    place = tmp_path_factory.mktemp("study")
    torch.manual_seed(0)
    pipeline(randomised(tiny_unet(), 0.2)).save_pretrained(place / "trained")
    given = Settings(
        rounds=2, threads=1, peers=Path(sys.executable), results=place / "results", cache=place / "cache",
        cases=(CASE,), trained=(str(place / "trained"),), sd15=tuple(SMALL.items()),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workshop, "prepared", _prepared_here)
        yield given


def test_the_model_is_the_public_one() -> None:
    public = json.loads(PUBLIC.read_text(encoding="utf-8"))
    with torch.device("meta"):
        ours, theirs = UNet2DConditionModel(**SD15_UNET), UNet2DConditionModel.from_config(public["config"])
    mine, public_config = (json.dumps({k: v for k, v in u.config.items() if k[0] != "_"}) for u in (ours, theirs))
    assert mine == public_config
    assert sum(each.numel() for each in ours.parameters()) == SD15_PARAMETERS == public["parameters"]


def test_the_plan_has_every_size_and_batch_and_the_anchors_in_every_latency_row() -> None:
    assert {(case.pixels, case.batch) for case in CASES} == {(256, 1), (256, 2), (512, 1), (512, 2)}
    rows = plan.rows(Settings(sections=("latency",), contenders="halftone-w8a8"))
    assert len(rows) == len(CASES)
    for row in rows:
        assert [each.name for each in row.contenders] == [*ANCHORS, "halftone-w8a8"]
    everything = plan.rows(Settings())
    assert len({(row.section, row.name) for row in everything}) == len(everything)
    for each in (each for each in CONTENDERS if each.road == "halftone_engine"):
        load(each.prepare["recipe"], each.prepare.get("budget", "fast"), each.prepare.get("overrides", ()))


def test_groups_fit_and_hold_the_anchors() -> None:
    weights = {BASELINE: 3, RIVAL: 2, "a": 5, "b": 4, "c": 1, "giant": 50}
    found = measure.groups([*weights, "does not run"], weights, 10)
    assert all(group[:2] == [BASELINE, RIVAL] for group in found)
    others = [name for group in found for name in group[2:]]
    assert sorted(others) == ["a", "b", "c", "giant"]
    for group in found:
        assert sum(weights[name] for name in group) <= 10 or group[2:] == ["giant"]
    assert measure.groups([BASELINE], {BASELINE: 3}, 10) == [[BASELINE]]


def test_distances_are_relative_to_the_reference() -> None:
    wanted = np.array([[1.0, -1.0], [2.0, 2.0]])
    found = measure.distances(wanted + np.array([[0.1, 0.1], [0.0, 0.2]]), wanted, np.array([900, 100]))
    assert found["relative_mse"] == pytest.approx(0.06 / 10)
    assert found["relative_mse_by_call"] == pytest.approx([0.01, 0.005])
    assert found["psnr"] == pytest.approx(10 * np.log10(9 / 0.015))
    assert measure.distances(wanted, wanted, np.array([1, 2]))["psnr"] == float("inf")


def test_inputs_of_one_prompt_are_the_same_array_for_all_calls(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    one = Inputs(random.random((3, 2, 4, 8, 8)), np.array([3, 2, 1]), random.random((1, 2, 77, 16)))
    one.save(tmp_path / "one.npz")
    again = Inputs.load(tmp_path / "one.npz")
    assert len({id(text) for _, _, text in again}) == 1 and [t for _, t, _ in again] == [3, 2, 1]
    assert again.shapes == {"sample": [2, 4, 8, 8], "text": [2, 77, 16]}
    each = Inputs(one.sample, one.timestep, random.random((3, 2, 77, 16)))
    assert [text[0, 0, 0] for _, _, text in each] == list(each.text[:, 0, 0, 0])  # type: ignore[index,union-attr]


@linux
@pytest.mark.slow
def test_the_study_from_end_to_end(settings: Settings, tmp_path: Path) -> None:
    mine = replace(settings, contenders="halftone-w8a8")
    said: list[str] = []
    assert run(mine, said.append) == []
    footprint = json.loads((settings.results / f"footprint/{CASE.name}-halftone-w8a8.json").read_text())["metrics"]
    assert 0 < footprint["memory"]["peak"] < 1e9 and footprint["load_seconds"] > 0
    assert 0 < footprint["error"]["relative_mse"] < 0.05 and footprint["disk_bytes"] > 1000
    assert set(footprint["kernels"]) <= {"vnni_int8", "onednn_int8", "reference"} and footprint["kernels"]
    latency = json.loads((settings.results / f"latency/{CASE.name}.json").read_text())["metrics"]["contenders"]
    assert len(latency["halftone-w8a8"]["rounds"]) == 2 and BASELINE in latency["halftone-w8a8"]["faster_than"]
    if find_spec("openvino") is None:
        assert "openvino" in latency[RIVAL]["failed"], "what does not run is in the row, with the reason"
    error = json.loads((settings.results / "error/trained-halftone-w8a8.json").read_text())["metrics"]
    assert error["calls"] == 64 and 0 < error["relative_mse"] < 0.1
    for name in (CASE.name, "trained"):
        distance = json.loads((settings.results / f"distance/{name}-halftone-w8a8.json").read_text())["metrics"]
        assert 0 <= distance["relative_mse"] < error["relative_mse"], "from its definition, not from the float model"
    again: list[str] = []
    assert run(mine, again.append) == [] and "0 to do" in again[-1]
    profile = json.loads((settings.results / f"profile/{CASE.name}-halftone-w8a8.json").read_text())["metrics"]
    assert profile["giga_operations"]["layers"] > 0 and profile["ceilings"]["int8 linear, GOP/s"] > 1
    assert sum(each["seconds"] for each in profile["operators"]) <= profile["profiled"]
    assert render(settings.results, tmp_path)[0] == f"wrote {PAGE}"
    text = (tmp_path / PAGE).read_text()
    assert "### sd-1.5, 128 px, batch 2" in text and "| Halftone W8A8 |" in text and "### trained" in text


@linux
@pytest.mark.slow
def test_the_engine_is_taken_apart_and_put_together_again(settings: Settings, tmp_path: Path) -> None:
    mine = replace(settings, sections=("levers",), contenders="halftone-w?a8-bf16", rounds=3)
    assert run(mine, lambda line: None) == []
    for name in TAKEN_APART:
        found = json.loads((settings.results / f"levers/{CASE.name}-{name}.json").read_text())["metrics"]
        assert set(found["without"]) == set(LEVERS) and found["seconds"]["median"] > 0
        assert all(0.1 < each["median"] < 10 for each in found["without"].values())
    render(settings.results, tmp_path)
    assert "What each part of our engine is worth" in (tmp_path / PAGE).read_text()


@pytest.mark.parametrize("name", LEVERS)
def test_a_part_that_is_off_is_off_and_on_again_afterwards(name: str) -> None:
    """Each way to switch a part off must reach the code that runs: a name that moved would leave the part on."""
    from halftone.nn import (
        QuantizedResnetBlock2D,
        QuantizedTransformer2DModel,
        QuantizedTransformerBlock,
        attended,
        attention,
        transformer,
    )
    from halftone.nn.running import set_engine

    def state() -> list:
        fused = [kind.forward for kind in (QuantizedResnetBlock2D, QuantizedTransformerBlock)]
        fused += [QuantizedTransformer2DModel._open, transformer.attended, attended._Held.hold]
        held = [layer.weights for layer in network.modules() if hasattr(layer, "weights")]
        return [*fused, attention.why_none, product.why_none, *held]

    network = quantized(randomised(tiny_unet()))
    set_engine(network, "torch")
    set_weights(network, "ready")
    before = state()
    with LEVERS[name](network):
        assert state() != before
    assert state() == before


@linux
@pytest.mark.parametrize("contender", [each for each in CONTENDERS if each.peers], ids=lambda each: each.name)
@pytest.mark.slow
def test_peers_compute_the_same_network(settings: Settings, contender: Contender) -> None:
    pytest.importorskip(NEEDS.get(contender.road, "openvino"))
    found = measure.footprint(contender, CASE, Workshop(settings, lambda line: None))
    assert found["error"]["relative_mse"] < 0.05


@linux
def test_a_contender_that_cannot_load_says_why(settings: Settings) -> None:
    made = Workshop(settings, lambda line: None)
    broken = replace(BY_NAME["halftone-w8a8"], load={"engine": "no such engine"})
    with pytest.raises(Failed, match="no such engine"):
        measure.footprint(broken, CASE, made)
    fatal = replace(BY_NAME[BASELINE], load={"dtype": "float99"})
    found = measure.latency([fatal], CASE, {BASELINE: 1}, made)
    assert found["contenders"] == {BASELINE: {"failed": "AttributeError: module 'torch' has no attribute 'float99'"}}


def test_the_command_refuses_what_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="unknown nothing"):
        main(["run", "--only", "nothing"])
    assert main(["render", "--results", str(tmp_path / "r"), "--docs", str(tmp_path)]) == 0
    assert not (tmp_path / PAGE).exists()


def test_the_committed_page_is_the_rows(tmp_path: Path) -> None:
    if not read(RESULTS):
        assert not (DOCS / PAGE).exists(), "a page without rows"
        return
    readme = tmp_path / "README.md"
    readme.write_text(README.read_text(encoding="utf-8"), encoding="utf-8")
    render(RESULTS, tmp_path, readme)
    assert (tmp_path / PAGE).read_text() == (DOCS / PAGE).read_text()
    assert readme.read_text() == README.read_text(), "run: python -m benchmarks.cpu_unet render"
