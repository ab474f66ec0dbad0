"""What a run of the study is asked to do."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.cpu_unet.cases import CASES, TRAINED, Case
from benchmarks.records import ROOT

RESULTS = Path(__file__).parent / "results"
CACHE = ROOT / "runs" / "cpu_unet"
DOCS = ROOT / "docs" / "results"
SECTIONS = ("footprint", "latency", "error", "profile", "levers", "distance")


@dataclass(frozen=True)
class Settings:
    """The options of the command line.

    Attributes:
        sections: which parts of the study.
        pattern: glob of ``section/name``; other rows are left alone.
        contenders: globs of the contenders' names, with commas between them.
        rounds: turns of each contender in a latency row.
        memory: bytes that the processes of one group may take together.
        threads: of every contender.
        peers: the Python that has the peers' packages; None makes an environment in the cache.
        cases: what is timed.
        trained: models whose output's error is measured.
        sd15: changes of the untrained U-Net's configuration, for tests.
    """

    sections: tuple[str, ...] = SECTIONS
    pattern: str = "*"
    contenders: str = "*"
    rounds: int = 9
    memory: int = 12 * 2**30
    threads: int = 2
    peers: Path | None = None
    resume: bool = True
    results: Path = RESULTS
    cache: Path = CACHE
    cases: tuple[Case, ...] = CASES
    trained: tuple[str, ...] = TRAINED
    sd15: tuple[tuple[str, object], ...] = ()
