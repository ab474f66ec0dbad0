"""Stopped at any moment, a quantization goes on where it was and gives the same bytes."""

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from halftone.foundation.files import sha256_of
from halftone.report.pieces import RUN

from .conftest import Halftone

# Some seconds of work, most of it in the two reconstructions.
CHANGES = (
    "calibration.samples=16",
    "calibration.select.steps=4",
    "steps.weights.range=min_max",
    "steps.reconstruct.iterations=5",
    "steps.activations.range=min_max",
    "steps.activations.samples=16",
    "steps.learn_steps.iterations=5",
)
WORK = ("--recipe", "q-diffusion-w4a8-learned-steps", "--budget", "demo", "--steps", "4", "--seed", "3")
WORK += tuple(part for change in CHANGES for part in ("--set", change))


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file by path, without the one that tells the times."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert RUN in files
    return {name: sha256_of(path) for name, path in files.items() if name != RUN}


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed."""
    from halftone.cli.app import run

    folder = tmp_path_factory.mktemp("whole") / "out"
    assert run(["quantize", str(model), *WORK, "-o", str(folder)]) == 0
    return folder


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def work_in(folder: Path) -> int:
    """Return how many finished pieces of work lie in ``folder``."""
    return len(list(folder.rglob("*.safetensors"))) + (folder / "claim.json").is_file()


@pytest.mark.slow
def test_killed_at_a_random_moment_and_resumed(halftone: Halftone, model: Path, whole: Path, tmp_path: Path) -> None:
    output, work = tmp_path / "out", tmp_path / "out.work"
    command = [sys.executable, "-m", "halftone", "quantize", str(model), *WORK, "-o", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    pieces = random.SystemRandom().randrange(1, 39)  # of about 40
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 240
        while process.poll() is None and work_in(work) < pieces and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(random.SystemRandom().uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = work_in(work)
    if work.exists():  # else it was faster than the signal
        assert halftone("quantize", model, *WORK, "-o", output).code == 2
        resumed = halftone("quantize", model, *WORK, "-o", output, "--resume")
        assert resumed.code == 0, resumed.err
    assert digests(output) == digests(whole), f"killed after {done} pieces of work"
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "neither work nor a half-written folder is left"


def test_interrupted_in_the_middle_and_resumed_with_the_line_it_prints(
    halftone: Halftone,
    model: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    from halftone.methods.ranges.static import Static

    def raise_signal(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    output = tmp_path / "an out"
    # A test run started in the background by a shell inherits an ignored SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with monkeypatch.context() as patch:
        patch.setattr(Static, "apply", raise_signal)
        stopped = halftone("quantize", model, *WORK, "-o", output)
    assert stopped.code == 130 and stopped.out == "" and "Traceback" not in stopped.err
    line = stopped.err.strip().splitlines()[-1]
    program, *arguments = shlex.split(line)
    assert program == "halftone" and arguments[-1] == "--resume" and not output.exists()
    done = halftone(*arguments)
    assert done.code == 0, done.err
    assert digests(output) == digests(whole)


def test_stopped_after_the_folder_was_written(
    halftone: Halftone, model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("halftone.cli.quantize._written", interrupt)
        assert halftone("quantize", model, *WORK, "-o", output).code == 130
    assert output.is_dir() and (tmp_path / "out.work").is_dir()
    done = halftone("quantize", model, *WORK, "-o", output, "--resume", "--json")
    assert done.code == 0 and done.json["kernels"], done.err
    assert digests(output) == digests(whole) and not (tmp_path / "out.work").exists()


def test_other_work_is_not_mixed_in(
    halftone: Halftone, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from halftone.methods.ranges.static import Static

    quick = ("--recipe", "rtn-w4a8", "--steps", 3, "--set", "calibration.samples=8", "-o", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(Static, "apply", interrupt)
        assert halftone("quantize", model, *quick).code == 130
    other = halftone("quantize", model, *quick, "--seed", 1, "--resume")
    assert other.code == 2 and "another recipe, model, sampler or seed" in other.err


def test_commands_without_unfinished_work_name_no_line(halftone: Halftone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halftone.cli.models.open_model", interrupt)
    stopped = halftone("inspect", "it")
    assert stopped.code == 130 and stopped.err.strip() == "error: interrupted"
