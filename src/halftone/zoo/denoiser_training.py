"""Train a denoiser on noise prediction: EMA, bf16 autocast, a checkpoint now and then, resume."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import nn

from halftone.kernels.machine import processor


@dataclass(frozen=True)
class Training:
    """Hyper-parameters of one denoiser training.

    The length is a budget of minutes of training time (``minutes``), because that is what a small machine has; the learning
    rate warms up, stays, and falls linearly to zero over the last ``decay`` of the budget, wherever the machine got to.
    The loss of a timestep is weighted by ``min(SNR, snr_gamma) / SNR`` (Min-SNR, arXiv:2303.09556, for noise prediction): nearly
    clean timesteps, which decide little of an image, would otherwise take most of a short training.
    """

    minutes: float = 240.0
    batch: int = 64
    lr: float = 5e-4
    warmup: int = 200  # steps
    decay: float = 0.3  # share of the budget
    ema: float = 0.9995
    snr_gamma: float = 5.0
    seed: int = 0
    checkpoint_minutes: float = 5.0


def _write_atomically(state: dict, path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


class _Run:
    """The mutable half of a training: weights, their moving average, optimizer, counters."""

    def __init__(self, pipe: DiffusionPipeline, training: Training, device: str) -> None:
        self.training = training
        self.device = device
        self.model: nn.Module = pipe.unet.to(device).train()
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=training.lr, betas=(0.9, 0.99), weight_decay=1e-4
        )
        self.signal = pipe.scheduler.alphas_cumprod.to(device)
        self.step, self.elapsed = 0, 0.0
        self.curve: list[dict] = []

    def restore(self, path: Path) -> None:
        # Written by this very program on this machine; still read without unpickling code.
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]
        self.step, self.elapsed, self.curve = state["step"], state["elapsed"], state["curve"]

    def checkpoint(self, path: Path) -> None:
        _write_atomically(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average,
                "step": self.step,
                "elapsed": self.elapsed,
                "curve": self.curve,
                "training": asdict(self.training),
            },
            path,
        )

    def learning_rate(self) -> float:
        left = 1.0 - self.elapsed / (60 * self.training.minutes)
        return self.training.lr * min(1.0, (self.step + 1) / self.training.warmup, max(left, 0.0) / self.training.decay)

    def update(self, clean: torch.Tensor, generator: torch.Generator) -> float:
        """One optimizer step on ``clean`` ``[B, C, H, W]``; returns the unweighted noise-prediction loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        t = torch.randint(0, len(self.signal), (len(clean),), generator=generator).to(self.device)
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        a = self.signal[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * clean.to(self.device) + (1 - a).sqrt() * noise
        with torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16):
            predicted = self.model(noisy, t).sample
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        snr = self.signal[t] / (1 - self.signal[t])
        (error * (self.training.snr_gamma / snr).clamp(max=1.0)).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        keep = min(self.training.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1 - keep)
        self.step += 1
        return error.mean().item()


def train(
    pipe: DiffusionPipeline, data: torch.Tensor, training: Training, work: Path, device: str = "cpu", say=print
) -> dict:
    """Train ``pipe.unet`` in place on ``data`` ``[N, C, H, W]`` in [-1, 1] and leave it with the averaged weights.

    ``work`` holds ``checkpoint.pt``; where it exists the training goes on from there, with the time already spent counted.
    Returns the card's facts: steps, images seen, seconds, loss curve, and the machine that finished the training.
    """
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "checkpoint.pt"
    run = _Run(pipe, training, device)
    if checkpoint.exists():
        run.restore(checkpoint)
        say(f"resumed at step {run.step}, {run.elapsed / 60:.1f} min")
    budget, saved, smooth = 60 * training.minutes, run.elapsed, None
    first, earlier = run.step, run.elapsed
    while run.elapsed < budget:
        began = time.monotonic()
        # One generator per step: the data order does not depend on where a run was interrupted.
        generator = torch.Generator().manual_seed(training.seed * 1_000_003 + run.step)
        loss = run.update(data[torch.randint(0, len(data), (training.batch,), generator=generator)], generator)
        smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
        run.elapsed += time.monotonic() - began
        if run.step % 100 == 0:
            run.curve.append({"step": run.step, "minutes": round(run.elapsed / 60, 2), "loss": round(smooth, 5)})
            rate = (run.step - first) * training.batch / (run.elapsed - earlier)
            say(f"step {run.step}  loss {smooth:.4f}  {rate:.0f} images/s  ETA {(budget - run.elapsed) / 60:.0f} min")
        if run.elapsed - saved > 60 * training.checkpoint_minutes:
            run.checkpoint(checkpoint)
            saved = run.elapsed
    run.checkpoint(checkpoint)
    pipe.unet.load_state_dict(run.average)
    pipe.unet.eval()
    facts = {
        "training": asdict(training),
        "steps": run.step,
        "images": run.step * training.batch,
        "seconds": round(run.elapsed),
        "curve": run.curve,
        "machine": {
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "cuda": torch.cuda.get_device_name() if torch.device(device).type == "cuda" else None,
        },
    }
    (work / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    return facts
