"""Block reconstruction within a bound of memory, killed half way and resumed: what it held, what it spilled, what it promised."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.quantizing.whole import PROMPTS, Most, environment, peak_of
from benchmarks.records import ROOT
from halftone.evaluate.bench import disk_bytes
from halftone.foundation.errors import ConfigError

_TASK = "reconstructing"
_LINE = re.compile(_TASK + r" (\d+)/(\d+) blocks, ([\d:]+) elapsed, (?:([\d:]+) left|(done)|ETA unknown)")
_SHARES = (0.1, 0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Bounded:
    """One quantization: ``recipe`` is a file beside this one.

    Attributes:
        memory, keep: as ``halftone quantize`` takes ``--memory`` and ``--keep-as``.
        steps: of the sampling.
    """

    recipe: str = "reconstruction.yaml"
    memory: str = "250MB"
    keep: str = "bfloat16"
    steps: int = 20

    @property
    def options(self) -> list[str]:
        recipe = str(Path(__file__).parent / self.recipe)
        named = {"--recipe": recipe, "--memory": self.memory, "--keep-as": self.keep, "--steps": str(self.steps)}
        return [part for pair in named.items() for part in pair]


@dataclass
class Told:
    """What the command's lines said of the reconstruction: blocks done and all, seconds elapsed, seconds left."""

    lines: list[tuple[int, int, float, float | None]] = field(default_factory=list)

    def hear(self, text: str) -> None:
        for found in _LINE.finditer(text):
            left = None if found[4] is None else _seconds(found[4])
            self.lines.append((int(found[1]), int(found[2]), _seconds(found[3]), left))

    @property
    def share(self) -> float:
        return self.lines[-1][0] / self.lines[-1][1] if self.lines else 0.0

    def promises(self) -> dict[str, float]:
        """Return, at shares of the time that it took, the whole time that was then foretold over the one that it took."""
        whole = self.lines[-1][2]
        found = {}
        for share in _SHARES:
            said = next((line for line in self.lines if line[2] >= share * whole and line[3] is not None), None)
            if said is not None and said[3] is not None:
                found[str(share)] = round((said[2] + said[3]) / whole, 3)
        return found


def _seconds(clock: str) -> float:
    """Return what a clock shows, in seconds.

    >>> _seconds("1:02:03"), _seconds("0:07")
    (3723.0, 7.0)
    """
    total = 0.0
    for part in clock.split(":"):
        total = 60 * total + int(part)
    return total


def bounded(given: Bounded, model: Path, place: Path) -> dict[str, Any]:
    """Run it whole, then once more, killed when half of the blocks are done, and resumed.

    Returns:
        Of the whole run: seconds of the reconstruction, the most memory and bytes on disk, and what its estimates came to. Of the
        other: after how many blocks it was killed, and whether its bytes are the same. Seconds of the three commands.

    Raises:
        ConfigError: the command failed; its last line is in the message.
    """
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    whole = _run(given, model, place / "whole")
    first = _run(given, model, place / "resumed", kill_at=0.5)
    second = _run(given, model, place / "resumed", resume=True)
    files = sorted((place / "whole/unet").glob("*.safetensors"))
    same = bool(files) and all((place / "resumed/unet" / each.name).read_bytes() == each.read_bytes() for each in files)
    found = {
        "blocks": whole["told"].lines[-1][1],
        "seconds": round(whole["told"].lines[-1][2]),
        "promised": whole["told"].promises(),
        "peak": whole["peak"],
        "disk": whole["disk"],
        "killed_at": first["told"].lines[-1][0],
        "command_seconds": {"whole": whole["seconds"], "killed": first["seconds"], "resumed": second["seconds"]},
        "same_bytes": same,
    }
    shutil.rmtree(place)
    return found


def _run(given: Bounded, model: Path, out: Path, kill_at: float | None = None, resume: bool = False) -> dict[str, Any]:
    words = ["quantize", str(model), *given.options, "--budget", "paper", "--prompts", str(PROMPTS), "-o", str(out)]
    command = [sys.executable, "-m", "halftone", *words, *(["--resume"] if resume else [])]
    began = time.monotonic()
    work = out.parent / f"{out.name}.work"  # spilled activations, the calibration's samples, finished blocks
    told, disk = Told(), Most(lambda: disk_bytes(work))
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=ROOT, env=environment(), **pipes) as process:  # type: ignore[call-overload]
        assert process.stderr is not None
        peak = Most(lambda: peak_of(process.pid))
        last = _heard(process.stderr, told, lambda: kill_at is not None and told.share >= kill_at, process)
        code = process.wait()
    seconds = time.monotonic() - began
    found = {"told": told, "seconds": round(seconds, 1), "peak": peak.stop(), "disk": disk.stop()}
    wanted = 0 if kill_at is None else -signal.SIGKILL
    if code != wanted or not told.lines:
        raise ConfigError("halftone " + " ".join(words), f"the exit status {wanted}", f"{code}: {last}")
    return found


def _heard(stream: IO[str], told: Told, enough: Any, process: "subprocess.Popen[str]") -> str:
    """Listen to the end, kill the process once it is ``enough``, and return the last line."""
    last = ""
    for line in stream:
        told.hear(line)
        last = line.strip() or last
        if enough():
            os.kill(process.pid, signal.SIGKILL)
    return last
