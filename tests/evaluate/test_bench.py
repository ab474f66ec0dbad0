"""Timing takes turns, memory is measured in its own process, inputs fit their model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DiTTransformer2DModel
from tests.tiny import tiny_conditional_unet

from halftone.evaluate.bench import Contender, Subject, bench, disk_bytes, latency, peak_memory, speedup
from halftone.foundation.errors import ConfigError, KernelError
from halftone.models.example_inputs import example_inputs


def recorder(name: str, log: list[str]) -> Contender:
    return Contender(name, lambda: lambda: log.append(name))


def test_contenders_take_turns_and_nobody_always_follows_the_same() -> None:
    log: list[str] = []
    rows = latency([recorder(name, log) for name in ("float32", "bfloat16", "torch")], rounds=3, warmup=1)
    assert [row.rounds for row in rows] == [3, 3, 3]
    assert [sorted(log[n : n + 3]) for n in range(0, 12, 3)] == [["bfloat16", "float32", "torch"]] * 4
    assert [log[n] for n in range(0, 12, 3)] == ["float32", "bfloat16", "torch", "float32"]


def test_speedups_name_their_baseline() -> None:
    rows = {row.name: row for row in latency([recorder(name, []) for name in ("float32", "torch")], rounds=5)}
    assert set(rows["torch"].speedup) == {"float32"} and rows["float32"].speedup == {}
    assert rows["torch"].p10 <= rows["torch"].median <= rows["torch"].p90


def test_interval_of_a_ratio_sees_through_a_drifting_machine() -> None:
    # The machine slows down to a third during the run; the ratio of the two does not change.
    drift = np.linspace(1.0, 3.0, 40)
    found = speedup(2.0 * drift, drift, seed=0)
    assert found.value == found.low == found.high == 2.0
    noisy = speedup(np.array([2.0, 3.0, 2.5, 2.2]), np.array([1.0, 1.1, 0.9, 1.0]), seed=0)
    assert noisy.low < noisy.value < noisy.high and noisy == speedup(
        np.array([2.0, 3.0, 2.5, 2.2]), np.array([1.0, 1.1, 0.9, 1.0]), seed=0
    )


@pytest.mark.parametrize(("names", "rounds"), [([], 3), (["a", "a"], 3), (["a"], 1)])
def test_requests_that_make_no_sense(names: list[str], rounds: int) -> None:
    with pytest.raises(ConfigError, match="contenders"):
        latency([recorder(name, []) for name in names], rounds=rounds)


@pytest.fixture(scope="module")
def folder(build: Callable[..., DDIMPipeline], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "model"
    build(0).save_pretrained(path)
    return path


def test_everything_about_a_model(build: Callable[..., DDIMPipeline], folder: Path) -> None:
    def make() -> Callable[[], Any]:
        model = build(0).unet
        args, kwargs = example_inputs(model, batch=2)
        return lambda: model(*args, **kwargs)

    subjects = {"float32": Subject(str(folder), "float32")}
    found = bench([Contender("float32", make)], subjects, {"float32": folder / "unet"}, batch=2, rounds=2, warmup=1)
    assert json.loads(json.dumps(found)) == found
    row = found["rows"][0]
    assert row["disk_bytes"] == disk_bytes(folder / "unet") > 1000
    assert row["memory"]["peak"] > 100_000 and row["memory"]["libraries"] > 2**26
    assert found["machine"]["threads"] == torch.get_num_threads() and found["machine"]["processor"]


def test_memory_of_what_does_not_run(folder: Path) -> None:
    with pytest.raises(KernelError, match="Did you mean 'simulate'"):
        peak_memory(Subject(str(folder), "simulat"), batch=1)


def test_inputs_of_unets(build: Callable[..., DDIMPipeline]) -> None:
    unet = build(0).unet
    (x, t), kwargs = example_inputs(unet, batch=3)
    assert x.shape == (3, 1, 16, 16) and t.shape == (3,) and kwargs == {}
    assert torch.equal(example_inputs(unet, 3)[0][0], x) and not torch.equal(example_inputs(unet, 3, seed=1)[0][0], x)
    assert example_inputs(build(0).unet.bfloat16(), batch=1)[0][0].dtype == torch.bfloat16


SDXL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 34}


@pytest.mark.parametrize("extra", [{}, SDXL], ids=["sd", "sdxl"])
def test_inputs_of_text_conditioned_unets(extra: dict[str, Any]) -> None:
    model = tiny_conditional_unet(**extra)
    args, kwargs = example_inputs(model, batch=2)
    assert model(*args, **kwargs).sample.shape == (2, 1, 8, 8)


def test_inputs_of_a_class_conditioned_transformer() -> None:
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, num_layers=1, sample_size=8, num_embeds_ada_norm=10
    )
    args, kwargs = example_inputs(model, batch=2)
    assert model(*args, **kwargs).sample.shape[:1] == (2,)


def test_inputs_of_something_else() -> None:
    with pytest.raises(ConfigError, match="UNet2DModel"):
        example_inputs(torch.nn.Linear(2, 2), batch=1)
