"""The loop: budget, resume, and what a kill leaves."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

from halftone.zoo.denoiser_training import Training
from halftone.zoo.trainer import Schedule, fit


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


def test_the_budget_and_the_learning_rate_end_together(tmp_path: Path) -> None:
    network = model()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    facts = fit(network, loss_of(network), Schedule(minutes=0.0), tmp_path / "none.pt", say=lambda line: None)
    assert facts["steps"] == 0 and all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    facts = fit(network, loss_of(network), Schedule(minutes=0.01), tmp_path / "some.pt", say=lambda line: None)
    assert facts["steps"] > 0 and facts["curve"] == sorted(facts["curve"], key=lambda point: point["step"])


def test_a_denoisers_training_is_a_schedule_with_a_loss() -> None:
    assert asdict(Training()) == {**asdict(Schedule()), "snr_gamma": 5.0}
