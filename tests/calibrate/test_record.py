"""Recording: what the denoiser was really called with, at which call, whatever the batch size and the sampler."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DiffusionPipeline, PNDMScheduler, UNet2DModel
from tests.comparison import sqnr
from tests.tiny import tiny_conditional_unet
from torch import nn

from halftone.calibrate.conditions import in_turn
from halftone.calibrate.record import count_calls, record
from halftone.calibrate.select.random import Random
from halftone.calibrate.select.uniform import Uniform
from halftone.calibrate.trajectory import Trajectory
from halftone.foundation.errors import CalibrationError


def taken(pipe: DiffusionPipeline, samples: int = 12, steps: int = 4, **kwargs: Any) -> Trajectory:
    return record(pipe, kwargs.pop("select", Uniform(20)), samples, steps, kwargs.pop("seed", 0), **kwargs)


def equal(a: Trajectory, b: Trajectory) -> bool:
    return torch.equal(a.args[0], b.args[0]) and torch.equal(a.args[1], b.args[1]) and torch.equal(a.calls, b.calls)


def test_shapes_calls_and_timesteps(pipe: DDIMPipeline) -> None:
    data = taken(pipe, 14)
    sample, timesteps = data.args
    assert (len(data), sample.shape, timesteps.shape) == (14, (14, 1, 8, 8), (14,))
    assert data.calls.tolist() == [0] * 4 + [1] * 4 + [2] * 3 + [3] * 3
    pipe.scheduler.set_timesteps(4)
    assert timesteps.tolist() == pipe.scheduler.timesteps[data.calls].tolist()
    assert abs(float(sample[:4].std()) - 1) < 0.15  # the first call sees pure noise


def test_samples_are_what_the_denoiser_was_given(pipe: DDIMPipeline) -> None:
    """Sampling by hand from the first call's noise leads through the recorded inputs."""
    data = taken(pipe, 8)
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(4)
    x = data.args[0][data.calls == 0]
    for call, t in enumerate(scheduler.timesteps):
        assert torch.equal(x, data.args[0][data.calls == call])
        with torch.no_grad():
            x = scheduler.step(pipe.unet(x, t).sample, t, x, eta=0.0, use_clipped_model_output=None).prev_sample


@pytest.mark.parametrize("select", [Uniform(3), Random()], ids=["uniform", "random"])
def test_the_batch_size_does_not_change_the_samples(pipe: DDIMPipeline, select: Any) -> None:
    whole = taken(pipe, select=select, batch=32)
    for batch in (1, 2, 5):
        part = taken(pipe, select=select, batch=batch)
        assert torch.equal(part.calls, whole.calls)
        assert torch.equal(part.args[1], whole.args[1])
        assert sqnr(whole.args[0], part.args[0]) > 90


def test_seeds(pipe: DDIMPipeline) -> None:
    assert equal(taken(pipe, seed=3), taken(pipe, seed=3))
    assert not equal(taken(pipe, seed=3), taken(pipe, seed=4))


def test_global_random_state_has_no_influence(pipe: DDIMPipeline) -> None:
    first = taken(pipe)
    torch.manual_seed(99)
    assert equal(taken(pipe), first)


def test_more_samples_begin_with_the_fewer(pipe: DDIMPipeline) -> None:
    few, many = taken(pipe, 4), taken(pipe, 12)
    for call in range(4):
        # To the rounding of float arithmetic, which differs between batch sizes.
        assert torch.allclose(few.args[0][few.calls == call], many.args[0][many.calls == call][:1], atol=1e-4)


def test_recording_leaves_the_pipeline_alone(pipe: DDIMPipeline) -> None:
    taken(pipe)
    assert not pipe.unet._forward_pre_hooks
    assert "step" not in vars(pipe.scheduler)


def test_a_sampler_with_more_calls_than_steps(pipe: DDIMPipeline) -> None:
    pipe.scheduler = PNDMScheduler(skip_prk_steps=True)  # calls the denoiser twice for its second step
    assert count_calls(pipe, 4, {"batch_size": 1}) == 5
    data = taken(pipe, 10)
    assert data.calls.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert data.identity["calls"] == 5
    assert data.args[1].tolist() == pipe.scheduler.timesteps[data.calls].tolist()
    assert len(set(data.args[1].tolist())) == 4, "one timestep comes twice"


class GuidedPipeline(DiffusionPipeline):
    """The calls of a pipeline with classifier-free guidance: all unconditional rows, then all conditional ones."""

    def __init__(self, unet: nn.Module, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self, prompt: list[str], generator: list[torch.Generator], num_inference_steps: int = 3, output_type: str = "np"
    ) -> None:
        x = torch.cat([torch.randn(1, 1, 8, 8, generator=g) for g in generator])
        prompts = torch.stack([torch.full((2, 16), float(len(text))) + torch.arange(16) for text in prompt])
        context = torch.cat([torch.zeros_like(prompts) + torch.arange(16), prompts])
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            free, bound = self.unet(torch.cat([x, x]), t, encoder_hidden_states=context).sample.chunk(2)
            x = self.scheduler.step(free + 2 * (bound - free), t, x).prev_sample


@pytest.fixture
def guided() -> GuidedPipeline:
    return GuidedPipeline(tiny_conditional_unet(), DDIMScheduler())


def test_guidance_gives_conditional_and_unconditional_rows_alike(guided: GuidedPipeline) -> None:
    prompts = {"prompt": ["a", "bb", "ccc", "dddd"]}
    data = record(guided, Uniform(3), 12, 3, 0, 4, None, prompts)
    context = data.kwargs["encoder_hidden_states"][:, 0, 0]
    first, second = (len(text) for text in in_turn(prompts, 2, 0)["prompt"])
    assert context.view(3, 4).tolist() == [[0, first, 0, second]] * 3
    sample = data.args[0].view(3, 4, 1, 8, 8)
    assert torch.equal(sample[:, 0], sample[:, 1])
    assert torch.equal(sample[:, 2], sample[:, 3])
    assert not torch.equal(sample[:, 1], sample[:, 2])


def test_under_guidance_the_batch_size_changes_nothing_either(guided: GuidedPipeline) -> None:
    prompts = {"prompt": ["a", "bb", "ccc", "dddd"]}
    whole = record(guided, Uniform(3), 12, 3, 0, 4, None, prompts)
    for batch in (1, 2, 3):
        part = record(guided, Uniform(3), 12, 3, 0, batch, None, prompts)
        assert torch.equal(part.kwargs["encoder_hidden_states"], whole.kwargs["encoder_hidden_states"])
        assert torch.allclose(part.args[0], whole.args[0], atol=1e-4)


@pytest.mark.parametrize("half", ["conditional", "unconditional"])
def test_one_half_of_guided_calls(guided: GuidedPipeline, half: Any) -> None:
    prompts = {"prompt": ["a", "bb", "ccc", "dddd"]}
    lengths = [len(text) for text in in_turn(prompts, 4, 0)["prompt"]]
    first = lengths if half == "conditional" else [0] * 4
    for batch in (3, 4):
        data = record(guided, Uniform(3), 12, 3, 0, batch, None, prompts, None, half)
        context = data.kwargs["encoder_hidden_states"][:, 0, 0]
        assert context.view(3, 4).tolist() == [first] * 3
        assert data.identity["halves"] == half
    assert "halves" not in record(guided, Uniform(3), 12, 3, 0, 4, None, prompts).identity


def test_a_half_without_guidance_is_refused(pipe: DDIMPipeline) -> None:
    with pytest.raises(CalibrationError, match="calibration.halves: conditional: expected two rows for each image"):
        record(pipe, Uniform(3), 4, 3, 0, 2, halves="conditional")


def test_identity(pipe: DDIMPipeline) -> None:
    identity = taken(pipe, 8, eta=0.5).identity
    expected = {
        "pipeline": "DDIMPipeline",
        "scheduler": "DDIMScheduler",
        "steps": 4,
        "eta": 0.5,
        "seed": 0,
        "dtype": "float32",
        "calls": 4,
        "select": {"name": "uniform", "steps": 20},
        "samples": 8,
        "arguments": {"eta": 0.5},
    }
    assert {key: identity[key] for key in expected} == expected
    assert identity["scheduler_config"]["num_train_timesteps"] == 1000
    assert set(identity) == {*expected, "scheduler_config", "reach"}


def test_saved_and_loaded_is_identical(guided: GuidedPipeline, tmp_path: Path) -> None:
    data = record(guided, Uniform(3), 6, 3, 0, 4, None, {"prompt": ["a", "bb"]})
    data.save(tmp_path / "trajectory.safetensors")
    again = Trajectory.load(tmp_path / "trajectory.safetensors")
    assert equal(data, again)
    assert data.kwargs.keys() == again.kwargs.keys()
    assert torch.equal(data.kwargs["encoder_hidden_states"], again.kwargs["encoder_hidden_states"])
    assert (again.identity, type(again.args)) == (data.identity, tuple)
    assert [path.name for path in tmp_path.iterdir()] == ["trajectory.safetensors"]


def test_rows_and_batches(data: Trajectory) -> None:
    args, kwargs = data.rows(torch.tensor([3, 1]))
    assert torch.equal(args[0], data.args[0][[3, 1]])
    assert torch.equal(args[1], data.args[1][[3, 1]])
    batches = data.batches(4)
    assert [len(b) for b in batches] == [4, 4, 4]
    assert torch.cat(batches).tolist() == [*range(10), 0, 1]
    shuffled = torch.cat(data.batches(5, torch.Generator().manual_seed(0)))
    assert sorted(shuffled.tolist()) == list(range(10)) != shuffled.tolist()
    with pytest.raises(CalibrationError, match="11 samples"):
        data.batches(11)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_no_numbers_are_refused(pipe: DDIMPipeline, value: float) -> None:
    pipe.unet.conv_out.bias.data.fill_(value)
    pipe.scheduler.register_to_config(clip_sample=False)
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        taken(pipe)


def test_an_empty_prompt_may_be_zeros(data: Trajectory) -> None:
    context = torch.zeros(len(data.calls), 7, 16)
    Trajectory(data.args, {"encoder_hidden_states": context}, data.calls, {}).check()


def test_constant_inputs_are_refused(data: Trajectory) -> None:
    data.check()
    constant = Trajectory((torch.full((10, 1, 8, 8), 0.5), data.args[1]), {}, data.calls, {})
    with pytest.raises(CalibrationError, match="constant 0.5"):
        constant.check()


def test_counting_computes_one_call_and_leaves_the_network_as_it_was(pipe: DDIMPipeline) -> None:
    own, computed = pipe.unet.forward, 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal computed
        computed += 1
        return own(*args, **kwargs)

    pipe.unet.forward = counted
    assert count_calls(pipe, 5, {"batch_size": 1}) == 5 and computed == 1
    assert pipe.unet.forward is counted
    del pipe.unet.forward
    count_calls(pipe, 2, {"batch_size": 1})
    assert "forward" not in vars(pipe.unet)


@pytest.mark.parametrize(("samples", "steps"), [(0, 4), (4, 0)])
def test_nothing_to_record_is_refused(pipe: DDIMPipeline, samples: int, steps: int) -> None:
    with pytest.raises(CalibrationError, match="at least one sample"):
        taken(pipe, samples, steps)


def test_a_unet_in_a_pipeline_is_the_denoiser(pipe: DDIMPipeline) -> None:
    assert isinstance(pipe.unet, UNet2DModel)
    assert count_calls(pipe, 3, {"batch_size": 2}) == 3
