"""Quantizing on a GPU: every method finds its data where the model is, spilled, taken up again or neither."""

from pathlib import Path

import pytest
import torch
from tests.stable_diffusion import PROMPTS, tiny_stable_diffusion

import halftone
from halftone.models.example_inputs import example_inputs

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::halftone.kernels.machine.SimulatedWarning")]
SMALL = ["calibration.samples=32", "calibration.influence=2"]


def quantized(place: Path, device: str, recipe: str, **bounds: object) -> torch.nn.Module:
    pipe = tiny_stable_diffusion(place / "tokenizer").to(device)
    overrides = SMALL if recipe.startswith("q-") else SMALL[:1]
    halftone.quantize(
        pipe, recipe, steps=4, budget="demo", overrides=overrides, each={"prompt": 32 * PROMPTS}, **bounds
    )
    return pipe.unet


@pytest.mark.parametrize("recipe", ["rtn-w4a8", "gptq-w4a8", "q-diffusion-w4a8", "q-diffusion-w4a8-learned-steps"])
def test_a_gpu_comes_to_what_the_cpu_comes_to(recipe: str, tmp_path: Path) -> None:
    here, there = (quantized(tmp_path, device, recipe) for device in ("cpu", "cuda"))
    assert {p.device.type for p in [*there.parameters(), *there.buffers()]} == {"cuda"}
    args, kwargs = example_inputs(here, 2)
    pipe = tiny_stable_diffusion(tmp_path / "tokenizer")
    with torch.no_grad():
        exact, cpu, gpu = (network(*args, **kwargs).sample for network in (pipe.unet, here, there.cpu()))
    errors = [(each - exact).square().mean() for each in (cpu, gpu)]
    assert errors[1] < 1.5 * errors[0]


def test_spilled_activations_come_back_to_the_gpu(tmp_path: Path) -> None:
    bounded = quantized(tmp_path, "cuda", "q-diffusion-w4a8", work=tmp_path / "work", memory=2**16)
    free = quantized(tmp_path, "cuda", "q-diffusion-w4a8")
    for (name, mine), theirs in zip(bounded.state_dict().items(), free.state_dict().values(), strict=True):
        assert mine.device == theirs.device and mine.shape == theirs.shape, name
