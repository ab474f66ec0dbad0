"""Latency of a denoiser call, peak memory and bytes on disk, with the float baselines in the same run.

Machines drift: a ratio of two times is only worth something when both were taken together. So all contenders live in one process
and take turns, in an order that rotates, and the interval of a ratio comes from redrawing whole rounds. Memory cannot be
measured so: each contender gets a process of its own.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halftone.foundation.errors import ConfigError, KernelError
from halftone.foundation.progress import Progress
from halftone.foundation.seeds import subseed
from halftone.kernels.machine import machine

BASELINES = ("float32", "bfloat16")
_DRAWS = 2000


@dataclass(frozen=True)
class Contender:
    """Something to time. ``make()`` loads it and returns the call; what the call returns is dropped."""

    name: str
    make: Callable[[], Callable[[], Any]]


@dataclass(frozen=True)
class Speedup:
    """How many times faster than a baseline: ratio of median times, with its 95 % bootstrap interval over rounds."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Latency:
    """Time of one call, in milliseconds.

    Attributes:
        rounds: calls that were counted.
        speedup: by baseline, for those that took part.
    """

    name: str
    median: float
    p10: float
    p90: float
    rounds: int
    speedup: dict[str, Speedup]


@dataclass(frozen=True)
class Memory:
    """Peak memory of a contender in bytes.

    Attributes:
        peak: above a process that has only imported the libraries.
        libraries: what that process takes.
        device: peak of the accelerator's allocator; None on a CPU.
    """

    peak: int
    libraries: int
    device: int | None = None


@dataclass(frozen=True)
class Subject:
    """A model to load in a process of its own: ``engine`` is a baseline's name (a dtype), or an engine's, run in ``dtype``."""

    folder: str
    engine: str
    weights: str = "ready"
    dtype: str = "float32"


def latency(
    contenders: Sequence[Contender],
    rounds: int = 30,
    warmup: int = 3,
    baselines: Sequence[str] = BASELINES,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Latency]:
    """Time the contenders, taking turns.

    Args:
        contenders: with different names.
        rounds: counted calls of each; at least 2.
        warmup: calls of each before, not counted (kernels are prepared in the first).
        baselines: names of contenders to compare with; absent ones are left out.

    Raises:
        ConfigError: no contender, equal names, or fewer than 2 rounds.
    """
    names = [each.name for each in contenders]
    if not names or len(set(names)) < len(names) or rounds < 2 or warmup < 0:
        got = f"{names}, {rounds} rounds, {warmup} warm-ups"
        raise ConfigError("bench", "contenders with different names, 2 rounds or more", got)
    times = _rounds([each.make() for each in contenders], rounds, warmup, progress or Progress(enabled=False))
    columns = {name: times[:, number] for number, name in enumerate(names)}
    rows = []
    for name, own in columns.items():
        median, p10, p90 = (float(q) for q in np.quantile(own, [0.5, 0.1, 0.9]) * 1e3)
        against = {each: speedup(columns[each], own, seed) for each in baselines if each in columns and each != name}
        rows.append(Latency(name, median, p10, p90, rounds, against))
    return rows


def speedup(baseline: np.ndarray, times: np.ndarray, seed: int, draws: int = _DRAWS) -> Speedup:
    """Return the ratio of medians ``baseline / times``, both ``[rounds]`` of one run; rounds are redrawn together."""
    # Equal seeds redraw equal rounds, so intervals of one table belong together.
    random = np.random.default_rng(subseed(seed, "bench"))
    chosen = random.integers(0, len(times), (draws, len(times)))
    ratios = np.median(baseline[chosen], axis=1) / np.median(times[chosen], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Speedup(float(np.median(baseline) / np.median(times)), float(low), float(high))


def _rounds(calls: list[Callable[[], Any]], rounds: int, warmup: int, progress: Progress) -> np.ndarray:
    """Return the seconds of each call, ``[rounds, contenders]``."""
    seconds = np.zeros((warmup + rounds, len(calls)))
    with torch.inference_mode(), progress.task("timing", warmup + rounds, "rounds") as task:
        for number in range(warmup + rounds):
            # Rotated, so that nobody always runs after the same one.
            for place in range(len(calls)):
                column = (number + place) % len(calls)
                seconds[number, column] = _timed(calls[column])
            task.advance()
    return seconds[warmup:]


def _timed(call: Callable[[], Any]) -> float:
    _synchronize()
    began = time.perf_counter()
    call()
    _synchronize()
    return time.perf_counter() - began


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(subject: Subject, batch: int, device: str = "cpu", timeout: float = 1800.0) -> Memory:
    """Load ``subject`` in a fresh process, call its denoiser three times with ``batch`` samples, and return its peak.

    Raises:
        KernelError: the process failed; the message is the last line it wrote.
    """
    command = [sys.executable, "-m", "halftone.evaluate.peak_memory", subject.folder, subject.engine]
    command += [
        "--weights",
        subject.weights,
        "--dtype",
        subject.dtype,
        "--batch",
        str(batch),
        "--device",
        device,
        "--threads",
        str(torch.get_num_threads()),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"memory of {subject.engine}", f"an end within {timeout:.0f} s", "none") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise KernelError(f"memory of {subject.engine}", "three denoiser calls", lines[-1])
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def disk_bytes(folder: str | Path) -> int:
    """Return the bytes of all files in ``folder``, sub-folders included."""
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def bench(
    contenders: Sequence[Contender],
    subjects: Mapping[str, Subject] | None = None,
    folders: Mapping[str, str | Path] | None = None,
    batch: int = 1,
    rounds: int = 30,
    warmup: int = 3,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure everything and return it JSON-safe: ``machine``, ``protocol``, and ``rows`` in the contenders' order.

    Args:
        contenders: see :func:`latency`; ``batch`` is what their calls were made with.
        subjects: by contender name, whose peak memory to measure.
        folders: by contender name, the denoiser's folder, whose bytes to count.
    """
    progress = progress or Progress(enabled=False)
    subjects, folders = subjects or {}, folders or {}
    # First, as the models that are timed fill this machine's memory.
    asked = [each.name for each in contenders if each.name in subjects]
    memory = {name: peak_memory(subjects[name], batch, device) for name in progress.track(asked, "memory")}
    rows = []
    for row in latency(contenders, rounds, warmup, seed=seed, progress=progress):
        found = memory.get(row.name)
        size = disk_bytes(folders[row.name]) if row.name in folders else None
        rows.append({**asdict(row), "memory": asdict(found) if found else None, "disk_bytes": size})
    protocol = {"batch": batch, "rounds": rounds, "warmup": warmup, "device": device, "unit": "ms", "confidence": 0.95}
    return {"machine": machine(), "protocol": protocol, "rows": rows}
