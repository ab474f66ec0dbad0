"""The loop: budget, resume, and what a kill leaves."""

import signal
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from halftone.foundation.errors import ArtifactError, ConfigError
from halftone.zoo import trainer
from halftone.zoo.denoiser_training import Training
from halftone.zoo.trainer import Schedule, fit
from halftone.zoo.watch import Watch


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))


def loss_of(network: nn.Module, stop_at: int | None = None):
    calls = 0

    def loss(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        if calls == stop_at:
            raise KeyboardInterrupt
        calls += 1
        x = torch.randn(16, 4, generator=generator)
        error = (network(x) - x).square().mean()
        return error, error.detach()

    return loss


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    how = Schedule(steps=12, warmup=3, checkpoint_minutes=0.0, batch=16)
    whole = model()
    facts = fit(whole, loss_of(whole), how, tmp_path / "whole.pt", say=lambda line: None)
    parts = model()
    with pytest.raises(KeyboardInterrupt):
        fit(parts, loss_of(parts, stop_at=7), how, tmp_path / "parts.pt", say=lambda line: None)
    said: list[str] = []
    parts = model()
    again = fit(parts, loss_of(parts), how, tmp_path / "parts.pt", say=said.append, label="tiny")
    assert said[0].startswith("tiny: resumed at step 7")
    assert (facts["steps"], facts["images"]) == (again["steps"], again["images"]) == (12, 192)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    assert not list(tmp_path.glob("*.partial")) and not parts.training


def test_a_pause_is_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was stopped for two hours in the middle of a step has not spent two hours."""
    now, step = 0.0, 0

    def clock() -> float:
        nonlocal now
        now += 0.5
        return now

    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=clock))
    network = model()
    plain = loss_of(network)

    def loss(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal now, step
        step += 1
        now += 7200.0 if step == 4 else 0.0
        return plain(generator)

    facts = fit(network, loss, Schedule(steps=8, warmup=3, batch=16), tmp_path / "c.pt", say=silent)
    assert facts["seconds"] == 8 * 0.5


def silent(line: str) -> None:
    pass


HOW = Schedule(steps=12, warmup=3, batch=16)


def test_an_interrupt_waits_for_the_step_and_writes_a_checkpoint(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # A test run started in the background by a shell inherits an ignored SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    whole = model()
    fit(whole, loss_of(whole), HOW, tmp_path / "whole.pt", say=silent)
    parts = model()
    calls, loss = 0, loss_of(parts)

    def interrupted(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        calls += 1
        found = loss(generator)
        if calls == 5:
            signal.raise_signal(signal.SIGINT)
        return found

    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        fit(parts, interrupted, HOW, tmp_path / "parts.pt", say=said.append)
    assert calls == 5 and said[-1].startswith("interrupted at step 5")
    parts = model()
    fit(parts, loss_of(parts), HOW, tmp_path / "parts.pt", say=said.append)
    assert any(line.startswith("resumed at step 5") for line in said)
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    network, file = model(), tmp_path / "a.pt"
    fit(network, loss_of(network), HOW, file, say=silent)
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="expected seed 0, as in this checkpoint, got seed 1. Name another folder"):
        fit(network, loss_of(network), replace(HOW, seed=1), file, say=silent)
    with pytest.raises(ConfigError, match="batch 16, lr 0.0005.*batch 8, lr 0.1"):
        fit(network, loss_of(network), replace(HOW, lr=0.1, batch=8), file, say=silent)
    assert file.read_bytes() == before
    fit(network, loss_of(network), replace(HOW, minutes=3.0, checkpoint_minutes=1.0), file, say=silent)
    with pytest.raises(ArtifactError, match="a checkpoint of this model"):
        fit(nn.Linear(4, 4), loss_of(network), HOW, file, say=silent)
    file.write_bytes(before[:1000])
    with pytest.raises(ArtifactError, match="a checkpoint of this model"):
        fit(network, loss_of(network), HOW, file, say=silent)


def test_what_an_older_checkpoint_does_not_tell_is_not_compared(tmp_path: Path) -> None:
    network, file = model(), tmp_path / "a.pt"
    fit(network, loss_of(network), HOW, file, say=silent)
    state = torch.load(file, weights_only=True)
    del state["measured"], state["training"]["warmup"]
    torch.save(state, file)
    facts = fit(network, loss_of(network), replace(HOW, warmup=4), file, say=silent)
    assert facts["steps"] == 12 and facts["stopped"] == "the budget of 12 steps was spent"


def measured(distances: list[float], patience: int | None = None) -> tuple[Watch, list[Mapping[str, torch.Tensor]]]:
    """Return a watch that measures after each step, and what it was given; an interrupt where a distance is NaN."""
    seen: list[Mapping[str, torch.Tensor]] = []

    def measure(weights: Mapping[str, torch.Tensor]) -> float:
        torch.rand(7)
        seen.append({name: value.clone() for name, value in weights.items()})
        found = distances[len(seen) - 1]
        if found != found:
            raise KeyboardInterrupt
        return found

    return Watch("FD(toy)", measure, 1e-9, patience, {"samples": 2}), seen


def test_measuring_changes_nothing_and_is_told(tmp_path: Path) -> None:
    def noisy(network: nn.Module):
        plain = loss_of(network)

        def loss(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
            minimised, shown = plain(generator)
            return minimised * torch.rand(()), shown  # global randomness, as of dropout

        return loss

    plain, watched = model(), model()
    torch.manual_seed(1)
    fit(plain, noisy(plain), HOW, tmp_path / "plain.pt", say=silent)
    watch, seen = measured([9.0, 7.0, 8.0] * 4)
    said: list[str] = []
    torch.manual_seed(1)
    facts = fit(watched, noisy(watched), HOW, tmp_path / "watched.pt", say=said.append, watch=watch)
    assert all(torch.equal(value, watched.state_dict()[name]) for name, value in plain.state_dict().items())
    assert all(torch.equal(value, watched.state_dict()[name]) for name, value in seen[-1].items())  # the average
    assert [point["distance"] for point in facts["curve"]] == [9.0, 7.0, 8.0] * 4
    assert facts["curve"][2].keys() == {"step", "minutes", "loss", "distance"}
    assert said[2] == "step 3  FD(toy) 8.00, best 7.00"
    assert facts["watch"] == {"name": "FD(toy)", "minutes": 1e-9, "patience": None, "samples": 2}


def test_patience_ends_a_training_also_when_it_is_resumed(tmp_path: Path) -> None:
    network = model()
    watch, seen = measured([9.0, 7.0, 7.5, float("nan")], patience=2)
    with pytest.raises(KeyboardInterrupt):
        fit(network, loss_of(network), HOW, tmp_path / "a.pt", say=silent, watch=watch)
    assert len(seen) == 4
    network = model()
    watch, seen = measured([7.0], patience=2)
    facts = fit(network, loss_of(network), HOW, tmp_path / "a.pt", say=silent, watch=watch)
    # The interrupted measurement is made up for after the next step.
    assert facts["steps"] == 5 and facts["stopped"] == "the distance had not improved in 2 measurements"
    again = fit(network, loss_of(network), HOW, tmp_path / "a.pt", say=silent, watch=watch)
    assert again["steps"] == 5 and len(seen) == 1


def test_no_minutes_between_measurements_are_none() -> None:
    watch, _ = measured([])
    assert watch.due(1.0) and not replace(watch, minutes=0.0).due(1e9)


def test_the_budget_and_the_learning_rate_end_together(tmp_path: Path) -> None:
    network = model()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    facts = fit(network, loss_of(network), Schedule(minutes=0.0), tmp_path / "none.pt", say=lambda line: None)
    assert facts["stopped"] == "the budget of 0 minutes was spent"
    assert facts["steps"] == 0 and all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    facts = fit(network, loss_of(network), Schedule(minutes=0.01), tmp_path / "some.pt", say=lambda line: None)
    assert facts["steps"] > 0 and facts["curve"] == sorted(facts["curve"], key=lambda point: point["step"])


def test_a_denoisers_training_is_a_schedule_with_a_loss() -> None:
    assert asdict(Training()) == {**asdict(Schedule()), "snr_gamma": 5.0}
