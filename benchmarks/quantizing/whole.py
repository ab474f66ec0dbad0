"""Run ``halftone quantize`` as a user would, and watch how long it takes and how much memory."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.records import ROOT
from halftone.evaluate.bench import disk_bytes
from halftone.foundation.errors import ConfigError

_EVERY = 0.2  # seconds between two looks
PROMPTS = Path(__file__).parent / "prompts.txt"


@dataclass(frozen=True)
class Command:
    """One quantization.

    Attributes:
        recipe, budget, steps: as ``halftone quantize`` takes them.
        memory: bound of the activations, as ``--memory`` takes it.
    """

    recipe: str = "q-diffusion-w4a8"
    budget: str = "fast"
    steps: int = 20
    memory: str = "2GB"

    @property
    def options(self) -> list[str]:
        named = {"--recipe": self.recipe, "--budget": self.budget, "--steps": str(self.steps), "--memory": self.memory}
        return [part for pair in named.items() for part in pair]


def watched(command: Command, model: Path, place: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Run it to the end and return seconds, of each step too, the peak of the resident memory, and bytes; with what
    ``halftone inspect --plan`` says before.

    Raises:
        ConfigError: the command failed; its last words are in the message.
    """
    program = [sys.executable, "-m", "halftone"]
    asked = ["inspect", "--plan", str(model), *command.options, "--json"]
    planned = json.loads(_checked([*program, *asked], say))
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    out = place / "out"
    given = ["quantize", str(model), *command.options, "--prompts", str(PROMPTS), "-o", str(out), "--json"]
    began = time.monotonic()
    process = subprocess.Popen([*program, *given], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment())
    peak = Most(lambda: peak_of(process.pid))
    answer, _ = process.communicate()
    seconds = time.monotonic() - began
    if process.returncode:
        raise ConfigError("halftone " + " ".join(given), "the exit status 0", str(process.returncode))
    said = json.loads(answer)
    found = {
        "seconds": round(seconds, 1),
        "by_step": said["seconds"],
        "peak": peak.stop(),
        "disk_bytes": disk_bytes(out / "unet"),
        "float_bytes": disk_bytes(model / "unet"),
        "plan": {key: planned[key] for key in ("seconds", "memory")},
    }
    shutil.rmtree(place)
    return found


class Most:
    """The most that was ever found by asking again and again, in a thread of its own; a look that fails (a process that has
    ended, a file that is gone) is none."""

    def __init__(self, ask: Callable[[], int]) -> None:
        self.ask, self.most, self._ended = ask, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY):
            with contextlib.suppress(OSError):
                self.most = max(self.most, self.ask())

    def stop(self) -> int:
        """Return it."""
        self._ended.set()
        self._thread.join()
        return self.most


def peak_of(pid: int) -> int:
    """Return the most bytes that a process has held so far: the system forgets it when the process ends."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return max((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), default=0)


def _checked(command: list[str], say: Callable[[str], None]) -> str:
    say(" ".join(command[2:]))
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment())
    if done.returncode:
        raise ConfigError(" ".join(command[2:]), "the exit status 0", f"{done.returncode}: {done.stderr.strip()}")
    return done.stdout


def environment() -> dict[str, str]:
    """Return what a process of this repository's code is started with."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
