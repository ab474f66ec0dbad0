"""Verdicts and reasons are computed: by the mean image, from the ranges, from the model's weights."""

from typing import Any

import numpy as np
import pytest
from benchmarks.q_diffusion import findings, reasons
from benchmarks.q_diffusion.details import drift, widest
from benchmarks.q_diffusion.plan import HEADLINE, METHODS
from benchmarks.q_diffusion.results import Result, read
from benchmarks.q_diffusion.settings import RESULTS

from halftone.recipes import load, names

PATH = "up_blocks.1.resnets.0.conv_shortcut"


def row(errors: np.ndarray | list[float], **labels: str) -> Result:
    same = {"model": {"name": "zoo:fashion-unet"}, "sampler": "ddim", "steps": 50, "noise_seed": 0}
    metrics = {"image_mse": list(errors)}
    return Result({"row": "r", "labels": labels, "protocol": same, "metrics": metrics, "budget": "demo"})


def test_a_few_images_that_tip_over_do_not_decide() -> None:
    fine = np.full(200, 1e-4)
    astray = fine.copy()
    astray[:3] = 0.5  # the pooled error is a hundred times as large
    rows = {"whole": row(fine, select="uniform", samples="budget"), "r": row(astray, select="random", samples="budget")}
    (found,) = findings.timesteps({"timesteps": rows})
    assert found.verdict == findings.SHOWS and "×" in found.evidence
    rows["r"] = row(fine / 1.3, select="random", samples="budget")
    (found,) = findings.timesteps({"timesteps": rows})
    assert found.verdict == findings.NOT


def test_a_reason_is_given_where_a_finding_does_not_show() -> None:
    alone = findings.Finding("A claim.", findings.NOT, "Numbers.", "A cause.")
    assert alone.text().endswith("Numbers. *Why:* A cause.")
    assert "Why" not in findings.Finding("A claim.", findings.SHOWS, "Numbers.", "A cause.").text()


def layer(spans: list[float]) -> dict[str, Any]:
    return {key: [sign * span / 2 for span in spans] for key, sign in _EXTREMES.items()}


_EXTREMES = {"minimum": -1, "low": -1, "high": 1, "maximum": 1}


def test_ranges_that_drift_and_ranges_that_jump() -> None:
    slow = [1.05**call for call in range(10)]
    jumping = [1.0, 4.0] * 5
    near, far = drift([layer(slow)])
    assert near == pytest.approx(0.05) and far > 0.25
    concatenations = {PATH: {"channels": [192, 128], "parts": [layer([40.0] * 10), layer([2.0] * 10)]}}
    assert widest(concatenations[PATH]["parts"]) == 20
    for spans, verdict in ((slow, findings.SHOWS), (jumping, findings.NOT)):
        metrics = {"ranges": {"layers": {"a": layer(spans)}, "concatenations": concatenations}}
        drifts, apart = findings.ranges({"float": Result({"metrics": metrics})})
        assert (drifts.verdict, apart.verdict) == (verdict, findings.SHOWS)
        assert "20.0 times" in apart.evidence and "is 20." in apart.evidence


def test_what_the_middle_half_covers() -> None:
    bump = layer([1.0, 1.0, 8.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert reasons.covered(bump, slice(2, 6)) == 1 and reasons.covered(bump, slice(4, 8)) == 1 / 8
    ranges = {"layers": {"a": bump, "b": layer([8.0] + [1.0] * 7)}, "timesteps": list(range(8))}
    text = reasons.middle_half({"ranges": {"float": Result({"metrics": {"ranges": ranges}})}})
    assert "in 1 of 2 layers, the first half in 2" in text


def test_own_scales_of_the_shipped_model() -> None:
    found = reasons.own_scales(row([1.0]), PATH, [192, 128])
    assert found is not None and 1.5 < found < 4
    assert reasons.own_scales(row([1.0]), "time_embedding.linear_1", [16, 16]) is None
    elsewhere = row([1.0])
    elsewhere.protocol["model"]["name"] = "somebody/elses"
    assert reasons.own_scales(elsewhere, PATH, [192, 128]) is None


def test_reasons_that_other_rows_give() -> None:
    rows = {"gptq-w4a32-ddim-to-dpm": row([2.0, 2.0]), "gptq-w4a32-dpm-to-dpm": row([1.0, 1.0])}
    assert "-3.01 dB" in reasons.another_sampler(rows) and "timestep" not in reasons.another_sampler(rows)
    rows["gptq-w4a32-time-float-ddim-to-dpm"] = row([1.0, 1.0])
    assert reasons.another_sampler(rows).endswith("in float it is +0.00 dB (+0.00 to +0.00).")
    assert reasons.another_sampler({}) == ""
    many = row([1.0, 1.0], bits="w4a8", without="network", samples="1024")
    few = row([1.25, 1.25], without="network")
    assert "-0.97 dB" in reasons.samples({"timesteps": {"m": many}, "ablation": {"f": few}})
    assert reasons.samples({}) == ""


def test_recipes_expect_what_the_rows_found() -> None:
    headline = read(RESULTS)["headline"]
    whole = headline["float"].distribution["value"]
    expecting = {name: recipe.expects for name in names() if (recipe := load(name)).expects}
    assert set(expecting) == {f"{method}-{bits}" for method in METHODS for bits in HEADLINE}
    for name, expected in expecting.items():
        found = headline[f"{name}-seed0"]
        settings = (expected.model, expected.budget, expected.steps)
        assert settings == (found.protocol["model"]["name"], found.data["budget"] or "fast", found.protocol["steps"])
        assert expected.psnr == pytest.approx(found.paired["psnr"]["value"], abs=0.051), name
        assert expected.distance == pytest.approx(found.distribution["value"] / whole - 1, abs=0.00051), name
