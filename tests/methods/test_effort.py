"""What a step will take is forecast from counts; what can be measured without a clock is compared here."""

import pytest
import torch
from diffusers import UNet2DModel
from tests.tiny import pipeline, tiny_unet

from halftone.calibrate import store
from halftone.methods.contract import Run
from halftone.methods.effort import Job, walking
from halftone.methods.reconstruct.ada_round import AdaRound
from halftone.methods.rounding.gptq import Gptq
from halftone.methods.rounding.nearest import Nearest
from halftone.models.cost import ModelCost, count
from halftone.models.example_inputs import example_inputs
from halftone.models.roles import architecture
from halftone.recipes import load, run_recipe


@pytest.fixture
def unet() -> UNet2DModel:
    return tiny_unet()


@pytest.fixture
def cost(unet: UNet2DModel) -> ModelCost:
    with torch.device("meta"):
        model = UNet2DModel.from_config(unet.config)
    return count(model, architecture(model), *example_inputs(model, 1))


@pytest.fixture
def job(unet: UNet2DModel, cost: ModelCost) -> Job:
    return Job(cost, 8, frozenset(architecture(unet).roles))


def test_a_walk_holds_what_was_forecast(unet: UNet2DModel, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    most, keep = 0, store.Store.keep

    def watched(self: store.Store, tensor: torch.Tensor) -> torch.Tensor:
        nonlocal most
        value = keep(self, tensor)
        most = max(most, self.used)
        return value

    monkeypatch.setattr(store.Store, "keep", watched)
    recipe = load("gptq-w4a32", overrides=["calibration.samples=8"])
    run_recipe(pipeline(unet), recipe, 3, Run())
    # The inputs are carried along, but not kept by the store; until the first quantized layer both streams are one.
    assert 0.6 * most < walking(job, 32).held < 1.6 * most


def test_more_of_everything_takes_more(job: Job) -> None:
    twice = Job(job.cost, 16, job.quantized)
    for method in (Gptq(), AdaRound()):
        one, two = method.effort(job), method.effort(twice)
        assert one.work.macs < two.work.macs
        assert two.held == 2 * one.held
    short, long = (AdaRound(iterations=count).effort(job) for count in (10, 20))
    assert short.work.macs < long.work.macs < 2 * short.work.macs
    assert Nearest(range="min_max").effort(job).work.elements < Nearest(range="shrink").effort(job).work.elements


def test_simulated_operands_need_score_matrices(job: Job) -> None:
    with_scores = Job(job.cost, job.samples, job.quantized, operands=True)
    assert job.forward(scores=True) == job.forward()
    assert with_scores.forward(scores=True).elements > job.forward().elements
    assert with_scores.largest_bytes(scores=True) >= job.largest_bytes()
