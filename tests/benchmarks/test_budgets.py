"""The rows at the other budgets: what starts by itself, the table, the verdicts."""

from typing import Any

import numpy as np
from benchmarks.q_diffusion import findings, plan
from benchmarks.q_diffusion.budgets import at_budgets, budgets_table
from benchmarks.q_diffusion.plots import pictures
from benchmarks.q_diffusion.render import page
from benchmarks.q_diffusion.results import Result, Section
from benchmarks.q_diffusion.settings import SECTIONS, Settings


def _names(**given: Any) -> list[str]:
    return [row.name for row in plan.rows(Settings(**{"sections": ("budgets",), **given}))]


def test_a_row_of_many_hours_does_not_start_by_accident() -> None:
    assert _names() == ["float", "q-diffusion-w4a8-demo", "q-diffusion-w4a32-demo"]
    assert not [row for row in plan.rows(Settings()) if row.budget == "paper"]
    assert not [row for row in plan.rows(Settings(pattern="*/*w4a8*")) if row.budget == "paper"]
    asked = ["q-diffusion-w4a8-paper", "q-diffusion-w4a32-paper"]
    assert _names(budget="paper") == ["float", *asked]
    assert _names(pattern="budgets/*-paper") == asked
    assert _names(pattern="budgets/*-fast") == [name.replace("paper", "fast") for name in asked]
    # The headline has them at that budget: not twice.
    assert _names(budget="paper", sections=SECTIONS).count("q-diffusion-w4a8-paper") == 0
    (row,) = plan.rows(Settings(pattern="budgets/q-diffusion-w4a8-paper"))
    assert (row.budget, row.samples, row.labels["budget"]) == ("paper", 5000, "paper")


def _row(name: str, budget: str | None, error: float, distance: float, **labels: str) -> Result:
    same = {"kind": "quality", "model": {"name": "m", "sha256": "0"}, "sampler": "ddim", "steps": 50, "noise_seed": 0}
    errors = np.random.default_rng(0).uniform(0.9, 1.1, 64) * error
    psnr = {"value": -10 * float(np.log10(error)), "low": 1.0, "high": 2.0}
    floor = {"mean": 1.0, "std": 0.1, "samples": 10, "draws": 2}
    evaluation: dict[str, Any] = {
        "distribution": {"name": "FD", "value": distance, "floor": floor, "test_distance": 1.0},
        "paired": None if budget is None else {"psnr": psnr},
    }
    metrics = {
        "evaluation": evaluation,
        "image_mse": errors.tolist(),
        "quantize": {"seconds": 90.0, "resumed": False},
        "disk_bytes": 1,
    }
    data = {"row": name, "labels": labels, "budget": budget, "recipe": None, "metrics": metrics}
    data |= {"protocol": {**same, "samples": 100}, "seeds": {"calibration": 0}, "commit": {"sha": "a", "dirty": False}}
    data |= {"machine": {"processor": "p", "threads": 1, "torch": "t", "diffusers": "d"}, "load_average": None}
    return Result(data)


def _sections() -> dict[str, Section]:
    q = {"method": "q-diffusion", "bits": "w4a8"}
    headline = {
        "float": _row("float", None, 1e-6, 10.0, method="float", bits="float"),
        "rtn-w4a8-seed0": _row("rtn-w4a8-seed0", "fast", 0.1, 40.0, method="rtn", bits="w4a8", seed="main"),
        "q-diffusion-w4a8-seed0": _row("q-diffusion-w4a8-seed0", "fast", 0.002, 10.5, **q, seed="main"),
    }
    budgets = {
        "q-diffusion-w4a8-demo": _row("q-diffusion-w4a8-demo", "demo", 0.01, 11.5, **q),
        "q-diffusion-w4a8-paper": _row("q-diffusion-w4a8-paper", "paper", 0.001, 10.2, **q),
    }
    return {"headline": headline, "budgets": budgets}


def test_the_table_takes_the_headlines_budget_from_the_headline() -> None:
    sections = _sections()
    assert list(at_budgets(sections, "w4a8")) == ["demo", "fast", "paper"]
    lines = [line.split(" | ") for line in budgets_table(sections) if line.startswith("| W4A8")]
    assert [(line[1], line[4], line[6], line[7]) for line in lines] == [
        ("demo", "10.00", "+15.0%", "90.0%"),
        ("fast", "3.01", "+5.0%", "98.0%"),
        ("paper", "-", "+2.0%", "99.0%"),
    ]


def test_both_targets_get_a_verdict_at_each_budget() -> None:
    sections = _sections()
    verdicts = [(found.verdict, found.evidence) for found in findings.other_budgets(sections)]
    assert [verdict for verdict, _ in verdicts] == [findings.NOT, findings.NOT, findings.SHOWS, findings.SHOWS]
    assert "budget demo" in verdicts[0][1] and "+15.0%" in verdicts[1][1]
    text = page(sections, set())
    assert text.index("## Headline") < text.index("## Budgets") and "--budget paper" in text
    assert pictures({"budgets": sections["budgets"]}) == {}
