"""Cells of the tables that more than one number goes into."""

from typing import Any

from benchmarks.q_diffusion.plan import HEADLINE, TIMED
from benchmarks.q_diffusion.results import Result
from benchmarks.q_diffusion.tables import megabytes, timed_names


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
    assert set(TIMED) == {f"q-diffusion-{bits}" for bits in HEADLINE}
