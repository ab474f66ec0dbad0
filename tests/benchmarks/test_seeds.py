"""Mean and spread over calibration seeds, and beside the verdicts."""

from typing import Any

import numpy as np
import pytest
from benchmarks.q_diffusion import findings, seeds
from benchmarks.q_diffusion.results import Result, Section


def _row(seed: int, samples: int, error: float, distance: float, /, **labels: str) -> Result:
    same = {"model": "m", "sampler": "ddim", "steps": 50, "noise_seed": 0, "samples": samples}
    metrics: dict[str, Any] = {"evaluation": {"distribution": {"value": distance}}}
    metrics["image_mse"] = (np.random.default_rng(0).uniform(0.9, 1.1, 64) * error).tolist()
    data = {"row": "r", "labels": labels, "protocol": same, "metrics": metrics, "budget": "demo"}
    return Result({**data, "seeds": {"calibration": seed}})


def _section() -> Section:
    found = {
        "float": _row(0, 500, 1.0, 10.0, method="float", bits="float"),
        "float-few": _row(0, 200, 1.0, 20.0, method="float", bits="few"),
    }
    for seed, (samples, distance, error) in enumerate(((500, 10.5, 0.01), (200, 21.4, 0.02), (200, 21.8, 0.03))):
        which = "main" if seed == 0 else "further"
        for method, factor in (("q-diffusion", 1.0), ("rtn", 50.0)):
            labels = {"method": method, "bits": "w4a8", "seed": which}
            found[f"{method}{seed}"] = _row(seed, samples, error * factor, distance * factor, **labels)
    return found


def test_each_seed_is_held_against_its_own_rival_and_as_many_float_samples() -> None:
    section = _section()
    removed = seeds.of_linear_removed(section, "q-diffusion", "w4a8")
    assert removed == seeds.Spread(pytest.approx(0.98), pytest.approx(0.0, abs=1e-9), 3)  # type: ignore[arg-type]
    over = seeds.over_float(section, "q-diffusion", "w4a8")
    assert over is not None and over.count == 3
    assert over.mean == pytest.approx(np.mean([0.05, 0.07, 0.09])) and over.deviation == pytest.approx(0.02)
    decibels = seeds.psnr(section, "q-diffusion", "w4a8")
    assert decibels is not None and decibels.count == 3 and decibels.deviation > 0
    assert seeds.of_linear_removed(section, "rtn", "w4a8") is None
    (line,) = [each for each in seeds.table_of(section) if "Q-Diffusion" in each]
    assert "7.0% ± 2.0% | 98.0% ± 0.0%" in line


def test_linear_without_calibration_serves_all_seeds() -> None:
    section = {
        "rtn": _row(0, 500, 0.5, 30.0, method="rtn", bits="w4a32", seed="main"),
        "a": _row(0, 500, 0.01, 10.0, method="gptq", bits="w4a32", seed="main"),
        "b": _row(1, 200, 0.02, 10.0, method="gptq", bits="w4a32", seed="further"),
    }
    found = seeds.of_linear_removed(section, "gptq", "w4a32")
    assert found is not None and (found.count, found.mean) == (2, pytest.approx(0.97))
    # No float row of as many samples, no ratio.
    assert seeds.over_float(section, "gptq", "w4a32") is None


def test_the_spread_stands_beside_the_verdicts() -> None:
    removed, distance = findings.headline(_section())
    assert removed.evidence.endswith("Over 3 seeds: 98.0% ± 0.0%.")
    assert distance.evidence.endswith("Over 3 seeds: +7.0% ± 2.0%.")
    alone = {name: row for name, row in _section().items() if not name.endswith(("1", "2"))}
    assert not [found for found in findings.headline(alone) if "seeds" in found.evidence]
