"""Cells of the tables that more than one number goes into."""

from typing import Any

from benchmarks.q_diffusion.plan import ACTIVATIONS, HEADLINE, TIMED, rows
from benchmarks.q_diffusion.record import recipe_of
from benchmarks.q_diffusion.results import Result
from benchmarks.q_diffusion.settings import Settings
from benchmarks.q_diffusion.tables import ablation, megabytes, timed_names


def _row(metrics: dict[str, Any], **labels: str) -> Result:
    return Result({"row": "r", "labels": labels, "metrics": metrics})


def test_the_float_models_bytes_are_those_of_float32_and_those_stored() -> None:
    whole = _row({"disk_bytes": 13_634_255}, method="float")
    small = _row({"disk_bytes": 3_596_199, "sizes": {"unquantized": 27_220_100}}, method="rtn")
    assert megabytes({"a": whole, "b": small}, whole, 1) == "27.2 (fp32), 13.6 as stored (16-bit)"
    assert megabytes({"a": whole, "b": small}, small, 2) == "3.60"
    assert megabytes({"a": whole}, whole, 1) == "13.6"


def test_the_timed_models_are_those_of_the_row() -> None:
    names = ["float32", "bfloat16", "q-diffusion-w4a8"]
    row = _row({"bench": {"16": {"rows": [{"name": name} for name in names]}}})
    assert timed_names({"latency": row}) == ["`q-diffusion-w4a8`"]
    assert timed_names({}) == []
    assert sorted(name.rpartition("-")[2] for name in TIMED) == sorted(HEADLINE), "one model of each format"


def _quality(name: str, decibels: float, labels: dict[str, str]) -> Result:
    psnr = {"value": decibels, "low": decibels, "high": decibels}
    metrics = {"evaluation": {"paired": {"psnr": psnr}}, "image_mse": [10 ** (-decibels / 10)]}
    same = {"kind": "quality", "sampler": "ddim", "samples": 1}
    return Result({"row": name, "labels": labels, "metrics": metrics, "protocol": same, "budget": "demo"})


def test_the_estimators_of_activation_ranges_stand_beside_the_recipes_own() -> None:
    every = rows(Settings(sections=("ablation",)))
    planned = [row for row in every if "activations" in row.labels]
    assert [recipe_of(row).steps["activations"]["range"] for row in planned] == list(ACTIVATIONS[1:])
    (own,) = [row for row in every if row.name == "w4a8-without-nothing"]
    assert recipe_of(own).steps["activations"]["range"] == ACTIVATIONS[0]
    section = {row.name: _quality(row.name, 20.0 + at, row.labels) for at, row in enumerate([own, *planned])}
    lines = ablation(section)
    table = lines[lines.index("W4A8 by how the activations' ranges are found:") :]
    assert [sum(f"| {name} |" in line for line in table) for name in ACTIVATIONS] == [1, 1, 1]
