"""``python -m benchmarks.cpu_unet.worker '{"road": ...}'``: one contender in a process of its own, which answers line by line.

It speaks JSON lines on what was its standard output; libraries that print get standard error instead. Answers hold ``error`` where
something failed. The commands: ``call`` (one untimed call, which wakes threads and caches, then a timed one), ``memory``,
``outputs`` (of all inputs, to a file) and ``quit``.
"""

import contextlib
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from benchmarks.cpu_unet.inputs import Inputs


class Worker:
    """A loaded contender and its inputs."""

    def __init__(self, spec: dict[str, Any]) -> None:
        inputs = Inputs.load(Path(spec["inputs"]))
        road: Any = importlib.import_module(f"benchmarks.cpu_unet.roads.{spec['road']}")
        before = resident()
        _forget_peak()
        began = time.perf_counter()
        self.denoiser = road.load(Path(spec["folder"]), inputs.shapes, spec["threads"], **spec["options"])
        loaded = time.perf_counter()
        self.given = [self.denoiser.take(*each) for each in inputs]
        self.denoiser.call(self.given[0])
        self.next = 1
        self.before = before
        self.facts = {"load_seconds": loaded - began, "first_call_seconds": time.perf_counter() - loaded}
        if hasattr(road, "kernels"):
            self.facts["kernels"] = road.kernels(self.denoiser)

    def call(self) -> dict[str, Any]:
        """Call twice with inputs that follow each other, and time the second."""
        self.denoiser.call(self._another())
        given = self._another()
        began = time.perf_counter()
        self.denoiser.call(given)
        return {"seconds": time.perf_counter() - began}

    def _another(self) -> Any:
        given = self.given[self.next % len(self.given)]
        self.next += 1
        return given

    def memory(self) -> dict[str, Any]:
        """Return bytes: the peak above a process that has only imported the libraries, of what kind they are now, and how many of
        them one more call touches, which is what the process needs to keep calling.
        """
        now = resident()
        return {
            "peak": max(0, now["VmHWM"] - self.before["VmRSS"]),
            "libraries": self.before["VmRSS"],
            "touched": self._touched(),
            "anonymous": now["RssAnon"],
            "files": now["RssFile"],
        }

    def _touched(self) -> int:
        Path("/proc/self/clear_refs").write_text("1", encoding="ascii")
        self.denoiser.call(self._another())
        for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Referenced:"):
                return int(line.split()[1]) * 1024
        raise OSError("this kernel's smaps_rollup has no line Referenced")

    def outputs(self, file: str) -> dict[str, Any]:
        """Write the output of every input."""
        found = [self.denoiser.give(self.denoiser.call(given)).copy() for given in self.given]
        np.save(file, np.stack(found))
        return {"file": file}


def resident() -> dict[str, int]:
    """Return this process's sizes in bytes by their names in Linux's ``/proc``."""
    sizes = {}
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name in ("VmRSS", "VmHWM", "RssAnon", "RssFile"):
            sizes[name] = int(rest.split()[0]) * 1024
    return sizes


def _forget_peak() -> None:
    """Start the peak anew, so that what importing took for a moment does not count."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def serve(commands: TextIO, answers: TextIO, spec: dict[str, Any]) -> None:
    """Load, then answer until told to quit."""

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    worker = Worker(spec)
    answer(worker.facts)
    for line in commands:
        name, *arguments = json.loads(line)
        if name == "quit":
            break
        answer(getattr(worker, name)(*arguments))


def private_output() -> TextIO:
    """Return what was standard output, which from now on is standard error for everyone else."""
    mine = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return mine


def told(error: BaseException) -> str:
    """Return an error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def main() -> int:
    """Serve standard input."""
    answers = private_output()
    try:
        serve(sys.stdin, answers, json.loads(sys.argv[1]))
    except Exception as error:  # whatever a library raises is an answer: the row says so
        import traceback

        traceback.print_exc()
        answers.write(json.dumps({"error": told(error)}) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
