"""A tiny pipeline on disk, and the command in this process."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import pipeline, tiny_unet

from halftone.cli.app import run

# As little work as a recipe can do.
QUICK = ("--recipe", "rtn-w4a8", "--steps", "3", "--set", "calibration.samples=8")


@dataclass(frozen=True)
class Answer:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout; anything beside it is an error."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


Halftone = Callable[..., Answer]


@pytest.fixture
def halftone(capsys: pytest.CaptureFixture[str]) -> Halftone:
    """Run ``halftone`` with the arguments."""

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        code = run([str(each) for each in arguments])
        seen = capsys.readouterr()
        return Answer(code, seen.out, seen.err)

    return call


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float pipeline folder."""
    folder = tmp_path_factory.mktemp("cli") / "model"
    pipeline(tiny_unet()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def quantized(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, quantized by the command; not to be changed."""
    folder = tmp_path_factory.mktemp("cli") / "quantized"
    assert run(["quantize", str(model), *QUICK, "-o", str(folder)]) == 0
    return folder
