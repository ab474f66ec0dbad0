"""Killed anywhere and resumed, a run ends bit by bit as an uninterrupted one; another run's work is never taken for one's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline
from tests.comparison import identical

from halftone.calibrate import record as recording
from halftone.foundation.errors import ConfigError
from halftone.methods import contract
from halftone.methods.contract import Run
from halftone.methods.fit import UnitError
from halftone.methods.output_error import OutputError
from halftone.methods.ranges.static import Static
from halftone.methods.reconstruct.ada_round import AdaRound
from halftone.methods.reconstruct.learned_steps import LearnedSteps
from halftone.methods.rounding.gptq import Gptq
from halftone.recipes import Recipe, load, run_recipe

Maker = Callable[[], DDIMPipeline]


class Killed(BaseException):
    """Not an Exception, so that nothing on the way tidies up for it."""


def recipe(shrunk: Callable[..., list[str]], *changes: str) -> Recipe:
    name = "q-diffusion-w4a8-learned-steps"
    quick = ("steps.weights.range=min_max", "steps.activations.range=min_max")
    # Everything that can be interrupted, in one recipe.
    network = "steps.network={method: reconstruct/network, iterations: 3, batch: 4, walk_batch: 8}"
    return load(name, "demo", [*shrunk(load(name, "demo"), 3), *quick, network, *changes])


def state_after(pipe: DDIMPipeline, recipe: Recipe, run: Run, resume: bool = False) -> dict[str, torch.Tensor]:
    run_recipe(pipe, recipe, 3, run, resume)
    return {name: value.clone() for name, value in pipe.unet.state_dict().items()}


def dies(function: Callable[..., Any], call: int, late: bool = False) -> Callable[..., Any]:
    """Return the function as it is when the process is killed at its ``call``-th call, before or after its work."""
    count = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == call and not late:
            raise Killed
        result = function(*args, **kwargs)
        if count == call:
            raise Killed
        return result

    return wrapped


MOMENTS = {
    "while recording": (recording._Hook, "__call__", 2, False),
    "before the trajectory is saved": (recording, "_join", 1, True),
    "between two layers of a block": (Gptq, "_round", 9, False),
    "middle of a block": (UnitError, "loss", 5, True),
    "while a memo is written": (contract, "save_file", 60, True),
    "while ranges are fitted": (Static, "apply", 1, True),
    "in the optimizer of steps": (UnitError, "loss", 84, True),
    "in the optimizer of the whole": (OutputError, "loss", 2, True),
    "while a unit is judged": (OutputError, "mean", 4, False),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which ``uninterrupted`` leaves its work."""
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def uninterrupted(make_pipe: Maker, shrunk: Callable[..., list[str]], finished: Path) -> dict[str, torch.Tensor]:
    """The result of a run that nothing disturbed."""
    return state_after(make_pipe(), recipe(shrunk), Run(seed=1, work=finished))


@pytest.mark.parametrize(("owner", "name", "call", "late"), MOMENTS.values(), ids=MOMENTS)
def test_killed_and_resumed_is_bit_identical(
    owner: Any,
    name: str,
    call: int,
    late: bool,
    make_pipe: Maker,
    shrunk: Callable[..., list[str]],
    uninterrupted: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = recipe(shrunk)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        function = getattr(owner, name)
        wrapped = dies(function, call, late)
        # A plain function as a class attribute is a method again.
        patched.setattr(owner, name, wrapped)
        run_recipe(make_pipe(), mine, 3, Run(seed=1, work=tmp_path))
    assert identical(state_after(make_pipe(), mine, Run(seed=1, work=tmp_path), resume=True), uninterrupted)


def test_killed_twice(
    make_pipe: Maker,
    shrunk: Callable[..., list[str]],
    uninterrupted: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for resume, (owner, name, call) in enumerate([(AdaRound, "_reconstruct", 3), (LearnedSteps, "_learn", 2)]):
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(owner, name, dies(getattr(owner, name), call))
            run_recipe(make_pipe(), recipe(shrunk), 3, Run(seed=1, work=tmp_path), bool(resume))
    assert identical(state_after(make_pipe(), recipe(shrunk), Run(seed=1, work=tmp_path), resume=True), uninterrupted)


def test_a_resumed_run_computes_only_the_rest(
    make_pipe: Maker,
    shrunk: Callable[..., list[str]],
    uninterrupted: dict[str, torch.Tensor],
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a run that had ended nothing is left to compute."""
    for owner, name in (
        (AdaRound, "_reconstruct"),
        (Gptq, "_round"),
        (LearnedSteps, "_learn"),
        (recording._Hook, "__call__"),
    ):
        monkeypatch.setattr(owner, name, dies(getattr(owner, name), 1))
    assert identical(state_after(make_pipe(), recipe(shrunk), Run(seed=1, work=finished), resume=True), uninterrupted)


def test_memory_bounds_and_a_place_for_work_change_no_result(
    make_pipe: Maker, shrunk: Callable[..., list[str]], uninterrupted: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    assert identical(state_after(make_pipe(), recipe(shrunk), Run(seed=1)), uninterrupted)
    bounded = Run(seed=1, work=tmp_path, memory=20_000)
    assert identical(state_after(make_pipe(), recipe(shrunk), bounded), uninterrupted)


def test_another_seed_is_another_result(
    make_pipe: Maker, shrunk: Callable[..., list[str]], uninterrupted: dict[str, torch.Tensor]
) -> None:
    assert not identical(state_after(make_pipe(), recipe(shrunk), Run(seed=2)), uninterrupted)


@pytest.fixture(scope="module")
def killed(make_pipe: Maker, shrunk: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work of a run that was killed; whoever is refused leaves it as it is."""
    work = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
        patched.setattr(AdaRound, "_reconstruct", dies(AdaRound._reconstruct, 2))
        run_recipe(make_pipe(), recipe(shrunk), 3, Run(seed=1, work=work))
    return work


def test_unfinished_work_is_not_touched_without_being_asked(
    make_pipe: Maker, shrunk: Callable[..., list[str]], killed: Path
) -> None:
    with pytest.raises(ConfigError, match="--resume"):
        run_recipe(make_pipe(), recipe(shrunk), 3, Run(seed=1, work=killed))


@pytest.mark.parametrize("difference", ["recipe", "seed", "steps", "model", "sampler", "prompts"])
def test_the_work_of_another_run_is_refused(
    difference: str, make_pipe: Maker, shrunk: Callable[..., list[str]], killed: Path
) -> None:
    pipe, mine, run, steps, each = make_pipe(), recipe(shrunk), Run(seed=1, work=killed), 3, None
    if difference == "recipe":
        mine = recipe(shrunk, "steps.reconstruct.lr=0.7")
    elif difference == "seed":
        run.seed = 2
    elif difference == "steps":
        steps = 4
    elif difference == "model":
        pipe.unet.conv_in.weight.data[0, 0, 0, 0] += 1e-6
    elif difference == "sampler":
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="trailing")
    else:
        each = {"prompt": ["a"]}
    with pytest.raises(ConfigError, match="another recipe, model, sampler or seed"):
        run_recipe(pipe, mine, steps, run, True, each)
