"""Contenders in processes of their own, seen from the command: start, ask, stop."""

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.records import ROOT


class Failed(Exception):
    """A contender's process could not do what was asked; the message is its own."""


def environment(threads: int) -> dict[str, str]:
    """Return the environment of every process: this repository's code, and the same number of threads for every library."""
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    said = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)}
    return {**os.environ, **said, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


class Process:
    """A worker (:mod:`benchmarks.cpu_unet.worker`) that has loaded its contender."""

    def __init__(self, python: Path, spec: dict[str, Any], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [str(python), "-m", "benchmarks.cpu_unet.worker", json.dumps(spec)]
        self.log = log
        with log.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env=environment(spec["threads"]), cwd=ROOT,
            )  # fmt: skip
        try:
            self.facts = self._answer()
        except BaseException:
            self.stop()
            raise

    def ask(self, name: str, *arguments: Any) -> dict[str, Any]:
        """Return the answer to a command.

        Raises:
            Failed: the worker says so, or has died.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([name, *arguments]) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise Failed(self._last_words()) from error
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Failed(self._last_words())
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise Failed(found["error"])
        return found

    def _last_words(self) -> str:
        self.process.wait()
        code = self.process.returncode
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no word"]
        reason = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
        return f"{reason}: {lines[-1][:300]}"

    def stop(self) -> None:
        """End the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write('["quit"]\n')
            self.process.stdin.close()
            self.process.wait(20)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        finally:
            # Closing flushes, which the end of the process may have made impossible.
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
            self.process.stdout.close()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def prepared(python: Path, spec: dict[str, Any], log: Path, threads: int) -> dict[str, Any]:
    """Run :mod:`benchmarks.cpu_unet.prepare` and return its facts.

    Raises:
        Failed: it could not; the message is its own.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [str(python), "-m", "benchmarks.cpu_unet.prepare", json.dumps(spec)]
    with log.open("w", encoding="utf-8") as errors:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment(threads), cwd=ROOT
        )
    if done.stdout.strip():
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if "error" not in found:
            return found
        raise Failed(found["error"])
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no word"]
    raise Failed(f"exit code {done.returncode}: {lines[-1][:300]}")
