"""What a run of the study is asked to do."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.quantizing.blocks import Given
from benchmarks.quantizing.bounded import Bounded
from benchmarks.quantizing.whole import Command
from benchmarks.records import ROOT

RESULTS = Path(__file__).parent / "results"
CACHE = ROOT / "runs" / "cpu_unet"  # has the model already where that study has been run
DOCS = ROOT / "docs" / "results"
SECTIONS = ("whole", "blocks", "arithmetic", "bounded")


@dataclass(frozen=True)
class Settings:
    """The options of the command line.

    Attributes:
        sections: which parts of the study.
        commands: the whole quantizations, by name.
        recipe: whose block reconstruction is timed.
        given: how.
        bounded: block reconstruction that is killed and resumed.
        sd15: changes of the U-Net's configuration, for tests.
    """

    sections: tuple[str, ...] = SECTIONS
    commands: tuple[Command, ...] = (Command(), Command(recipe="q-diffusion-w8a8"))
    recipe: str = "q-diffusion-w4a8"
    given: Given = Given()
    bounded: Bounded = Bounded()
    resume: bool = True
    results: Path = RESULTS
    cache: Path = CACHE
    sd15: tuple[tuple[str, object], ...] = ()
