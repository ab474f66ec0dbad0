"""A training loop for anything with a loss: EMA, a budget in minutes, checkpoints, resume, measurements on the way."""

import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from halftone.foundation.errors import ArtifactError, ConfigError
from halftone.foundation.interrupts import interrupts_wait
from halftone.kernels.machine import machine
from halftone.zoo.watch import Point, Watch, distances

# Draws a batch with the generator and returns (the scalar to minimise, the scalar to show).
Loss = Callable[[torch.Generator], tuple[torch.Tensor, torch.Tensor]]

_PAUSE = 60.0  # seconds: no step takes this long and twenty times the usual one
_REPORT = 100  # steps between two lines
# Settings that a resumed training may change: how long it is, and how often it is saved.
_FREE = {"minutes", "checkpoint_minutes"}
_ELSEWHERE = "Name another folder with --work, or delete this one."


@dataclass(frozen=True)
class Schedule:
    """Hyper-parameters of the loop.

    The length is a budget of minutes of training time (``minutes``), because that is what a small machine has; the learning
    rate warms up, stays, and falls linearly to zero over the last ``decay`` of the budget, wherever the machine got to.
    ``steps`` replaces the budget by a number of optimizer steps: then nothing depends on the clock, and a run that was
    interrupted gives the same bits as one that was not.
    """

    minutes: float = 240.0
    batch: int = 64
    lr: float = 5e-4
    warmup: int = 200  # steps
    decay: float = 0.3  # share of the budget
    ema: float = 0.9995
    seed: int = 0
    checkpoint_minutes: float = 5.0
    steps: int | None = None


class _Run:
    """The mutable half of a training: weights, their moving average, optimizer, counters."""

    def __init__(self, model: nn.Module, schedule: Schedule, device: str, about: Mapping[str, Any]) -> None:
        self.schedule = schedule
        self.settings = {**asdict(schedule), **about}
        self.device = device
        self.model = model.to(device).train()
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=schedule.lr,
            betas=(0.9, 0.99),
            weight_decay=1e-4,
            fused=torch.device(device).type == "cuda",  # elsewhere it would change the bits of older trainings
        )
        self.step, self.elapsed = 0, 0.0
        self.measured = 0.0  # what had elapsed at the last measurement
        self.curve: list[Point] = []
        self.whole = True  # no step is half done

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ConfigError: it is one of a training with other settings.
            ArtifactError: it is damaged, or of another model.
        """
        try:
            # Written by this very program on this machine; still read without unpickling code.
            state = torch.load(path, map_location=self.device, weights_only=True)
            _check_settings(path, state.get("training", {}), self.settings)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average = state["average"]
            self.step, self.elapsed, self.curve = state["step"], state["elapsed"], state["curve"]
        except (OSError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
            got = str(error).partition("\n")[0]
            raise ArtifactError(str(path), "a checkpoint of this model", got, _ELSEWHERE) from error
        # Older checkpoints were not measured.
        self.measured = state.get("measured", self.elapsed)

    def checkpoint(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
            "elapsed": self.elapsed,
            "measured": self.measured,
            "curve": self.curve,
            "training": self.settings,
        }
        partial = path.with_suffix(".partial")
        with interrupts_wait():
            torch.save(state, partial)
            # A rename is atomic: a kill leaves the old checkpoint or the new one.
            partial.replace(path)

    @property
    def done(self) -> float:
        """The share of the budget that is used up; 1 or more ends the training."""
        how = self.schedule
        if how.steps is not None:
            return self.step / how.steps if how.steps else 1.0
        return self.elapsed / (60 * how.minutes) if how.minutes else 1.0

    def learning_rate(self) -> float:
        how = self.schedule
        return how.lr * min(1.0, (self.step + 1) / how.warmup, max(1.0 - self.done, 0.0) / how.decay)

    def update(self, loss: Loss) -> torch.Tensor:
        """One optimizer step; returns the number to show, on the device: to read it is to wait for the step."""
        began, self.whole = time.monotonic(), False
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        # One generator per step: the data order does not depend on where a run was interrupted.
        generator = torch.Generator().manual_seed(self.schedule.seed * 1_000_003 + self.step)
        minimised, shown = loss(generator)
        minimised.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        keep = min(self.schedule.ema, (1 + self.step) / (10 + self.step))
        self._follow(keep)
        self.elapsed += self._worked(time.monotonic() - began)
        self.step += 1
        self.whole = True
        return shown

    def _follow(self, keep: float) -> None:
        """Move the average towards the weights, keeping ``keep`` of it."""
        state = self.model.state_dict()
        floats = [name for name, value in state.items() if value.is_floating_point()]
        # All in one launch: a GPU spends longer on starting a thousand small ones than on the rest of the step.
        get_ema_multi_avg_fn(keep)([self.average[name] for name in floats], [state[name] for name in floats], 0)
        for name in state.keys() - set(floats):  # integer buffers: positions, counters
            self.average[name].copy_(state[name])

    def _worked(self, seconds: float) -> float:
        """Return what of a step's time was work: a process that is stopped, or a machine that sleeps, spends nothing."""
        usual = self.elapsed / self.step if self.step else seconds
        return usual if seconds > max(_PAUSE, 20 * usual) else seconds

    def point(self, loss: float) -> Point:
        """Return where the training is."""
        return {"step": self.step, "minutes": round(self.elapsed / 60, 2), "loss": round(loss, 5)}


def _check_settings(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    # What an older checkpoint does not tell cannot be compared.
    other = [name for name in ours if name not in _FREE and name in theirs and theirs[name] != ours[name]]
    if other:
        expected, got = (", ".join(f"{name} {each[name]}" for name in other) for each in (theirs, ours))
        raise ConfigError(str(path), f"{expected}, as in this checkpoint", got, _ELSEWHERE)


def fit(
    model: nn.Module,
    loss: Loss,
    schedule: Schedule,
    checkpoint: Path,
    device: str = "cpu",
    say: Callable[[str], None] = print,
    label: str = "",
    watch: Watch | None = None,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train ``model`` in place and leave it on ``device``, in evaluation mode, with the averaged weights.

    An interrupt (Ctrl-C) writes a checkpoint before it is raised.

    Args:
        model: everything that is trained, as one module.
        loss: called once a step with the step's own generator, from which all its random numbers must come.
        checkpoint: where it exists the training goes on from there, with the time already spent counted.
        label: begins each line that is said.
        watch: measures the averaged weights now and then, and may end the training. Its time does not count.
        about: what else must be equal where a training is resumed; plain values.

    Returns:
        The card's facts: hyper-parameters, steps, images seen, seconds, loss curve, why it stopped, the machine that finished it.

    Raises:
        ConfigError: ``checkpoint`` is one of a training with other settings; the number of minutes may differ.
        ArtifactError: it is damaged, or of another model.
    """
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    run = _Run(model, schedule, device, about or {})
    speak = (lambda line: say(f"{label}: {line}")) if label else say
    if checkpoint.exists():
        run.restore(checkpoint)
        speak(f"resumed at step {run.step}, {run.elapsed / 60:.1f} min")
    try:
        _loop(run, loss, checkpoint, speak, watch)
    except KeyboardInterrupt:
        # Of a step that a second interrupt cut in two, nothing is kept.
        if run.whole:
            run.checkpoint(checkpoint)
            speak(f"interrupted at step {run.step}, {run.elapsed / 60:.1f} min")
        raise
    run.checkpoint(checkpoint)
    model.load_state_dict(run.average)
    model.eval()
    return {
        "training": asdict(schedule),
        "steps": run.step,
        "images": run.step * schedule.batch,
        "seconds": round(run.elapsed),
        "stopped": _reason(run, watch),
        "curve": run.curve,
        **({"watch": watch.facts()} if watch else {}),
        "machine": machine(),
    }


def _loop(run: _Run, loss: Loss, checkpoint: Path, say: Callable[[str], None], watch: Watch | None) -> None:
    schedule, saved, smooth = run.schedule, run.elapsed, torch.zeros(())
    first, earlier = run.step, run.elapsed
    while run.done < 1.0 and not (watch and watch.exhausted(run.curve)):
        with interrupts_wait():
            shown = run.update(loss)
            smooth = 0.98 * smooth + 0.02 * shown if run.step > first + 1 else shown
            if run.step % _REPORT == 0:
                run.curve.append(run.point(smooth.item()))
                rate = (run.step - first) * schedule.batch / (run.elapsed - earlier)
                left = run.elapsed / run.done * (1 - run.done) / 60
                say(f"step {run.step}  loss {smooth.item():.4f}  {rate:.0f} images/s  ETA {left:.0f} min")
            if run.elapsed - saved > 60 * schedule.checkpoint_minutes:
                run.checkpoint(checkpoint)
                saved = run.elapsed
        if watch and watch.due(run.elapsed - run.measured):
            _measure(run, smooth.item(), watch, say)


def _measure(run: _Run, loss: float, watch: Watch, say: Callable[[str], None]) -> None:
    devices = [torch.device(run.device)] if torch.device(run.device).type == "cuda" else []
    with torch.random.fork_rng(devices):
        distance = float(watch.measure(run.average))
    best = min([*distances(run.curve), distance])
    with interrupts_wait():
        run.curve.append({**run.point(loss), "distance": round(distance, 4)})
        run.measured = run.elapsed
    say(f"step {run.step}  {watch.name} {distance:.2f}, best {best:.2f}")


def _reason(run: _Run, watch: Watch | None) -> str:
    """Return why the training ended, for the card."""
    if run.done < 1.0 and watch is not None:
        return f"the distance had not improved in {watch.patience} measurement{'s' if watch.patience != 1 else ''}"
    how = run.schedule
    budget = f"{how.steps} steps" if how.steps is not None else f"{how.minutes:g} minutes"
    return f"the budget of {budget} was spent"
