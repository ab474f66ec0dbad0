"""A quantized denoiser says when it is called unlike all that it was calibrated on, once for each difference."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline
from tests.tiny import NO_ATTENTION, pipeline, tiny_unet

import halftone
from halftone.artifact import load_pipeline, save_pipeline
from halftone.artifact.watch import watch
from halftone.foundation.errors import ArtifactError
from halftone.models.reach import beyond, named_inputs, reach


def quantized(recipe: str = "rtn-w8a8") -> DDIMPipeline:
    pipe = pipeline(tiny_unet(blocks=NO_ATTENTION, sample_size=8, block_out_channels=(8, 8)))
    halftone.quantize(pipe, recipe, steps=5, budget="demo", overrides=["calibration.samples=10"])
    return pipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(quantized(), tmp_path_factory.mktemp("watch") / "out")


def test_calls_like_the_calibrations_say_nothing(folder: Path) -> None:
    pipe = load_pipeline(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe(num_inference_steps=5)
    pipe(num_inference_steps=20, batch_size=3)  # other steps and another batch are within reach


def test_another_size_is_told_once_and_by_every_copy(folder: Path) -> None:
    unet = load_pipeline(folder).unet
    twin = copy.deepcopy(unet)
    with pytest.warns(halftone.TrajectoryWarning, match=r"sample \[1, 16, 16\] instead of \[1, 8, 8\]"):
        unet(torch.randn(1, 1, 16, 16), 0)
    unet(torch.randn(1, 1, 16, 16), 0)  # warnings are errors in these tests
    with pytest.warns(halftone.TrajectoryWarning):
        twin(torch.randn(1, 1, 16, 16), 0)


def test_a_timestep_far_from_all_is_told(folder: Path) -> None:
    unet = load_pipeline(folder).unet
    known = unet.hf_quantizer.quantization_config.description.trajectory["reach"]
    assert known["timesteps"] == {"low": 0.0, "high": 800.0, "step": 200.0}
    unet(torch.randn(1, 1, 8, 8), torch.tensor(999))  # within one step
    unet.hf_quantizer.quantization_config.description.trajectory["reach"]["timesteps"]["step"] = 20.0
    with pytest.warns(halftone.TrajectoryWarning, match="timestep 999, where calibration had 0 to 800"):
        unet(torch.randn(1, 1, 8, 8), torch.tensor(999))


def test_a_model_that_was_quantized_in_place_is_watched_as_well() -> None:
    pipe = quantized()
    with pytest.warns(halftone.TrajectoryWarning):
        pipe.unet(torch.randn(1, 1, 16, 16), 0)


def test_saving_again_does_not_watch_twice(folder: Path, tmp_path: Path) -> None:
    pipe = load_pipeline(folder)
    hooks = len(pipe.unet._forward_pre_hooks)
    save_pipeline(pipe, tmp_path / "again")
    assert len(pipe.unet._forward_pre_hooks) == hooks == 1
    pickle.loads(pickle.dumps(pipe.unet._forward_pre_hooks))


def test_weights_alone_have_no_ranges_to_leave() -> None:
    unet = quantized("rtn-w4a32").unet
    unet(torch.randn(1, 1, 16, 16), 0)


@pytest.mark.parametrize(
    "known",
    [
        "everything",
        {"inputs": ["sample"]},
        {"inputs": {"sample": 8}},
        {"inputs": {"sample": [1, "8", 8]}},
        {"inputs": {}, "timesteps": {"low": 0}},
        {"inputs": {}, "timesteps": 3},
    ],
    ids=str,
)
def test_a_reach_of_another_form_is_refused(folder: Path, known: object) -> None:
    with pytest.raises(ArtifactError, match="trajectory.reach"):
        watch(load_pipeline(folder).unet, {"reach": known})


def test_an_artifact_without_a_reach_is_not_watched() -> None:
    unet = quantized().unet
    unet._forward_pre_hooks.clear()
    watch(unet, {"steps": 5})
    watch(unet, None)
    unet(torch.randn(1, 1, 16, 16), 0)


def test_inputs_are_known_by_name_however_they_are_passed() -> None:
    unet = tiny_unet(blocks=NO_ATTENTION, sample_size=8, block_out_channels=(8, 8))
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 7])
    assert named_inputs(unet, (x, t), {}).keys() == named_inputs(unet, (x,), {"timestep": t}).keys()
    known = reach(unet, (x, t), {})
    assert known == {"inputs": {"sample": [1, 8, 8], "timestep": []}, "timesteps": {"low": 3, "high": 7, "step": 4}}
    assert beyond(known, unet, (x[:1], 5), {}) == {}
    assert beyond(known, unet, (x[:1],), {}) == {"timestep": "nothing for an input that calibration had: timestep"}
    sentences = beyond({**known, "timesteps": {"low": 50, "high": 60, "step": 1}}, unet, (x[:1], 5), {})
    assert sentences == {"timesteps": "timestep 5, where calibration had 50 to 60"}


def test_one_difference_does_not_hide_another(folder: Path) -> None:
    unet = load_pipeline(folder).unet
    (hook,) = unet._forward_pre_hooks.values()
    with pytest.warns(halftone.TrajectoryWarning, match="class_labels"):
        hook(unet, (torch.randn(1, 1, 8, 8), 0, torch.zeros(1)), {})
    with pytest.warns(halftone.TrajectoryWarning, match="sample"):
        hook(unet, (torch.randn(1, 1, 16, 16), 0, torch.zeros(1)), {})
