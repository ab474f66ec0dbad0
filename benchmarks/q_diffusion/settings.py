"""What a run of the study is asked to do."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
CACHE = ROOT / "runs" / "q_diffusion"
DOCS = ROOT / "docs" / "results"

# The most telling first.
SECTIONS = ("headline", "haze", "budgets", "edges", "bias", "trajectory", "timesteps", "ablation", "ranges", "samplers")
MODEL = "zoo:fashion-unet"
_SAMPLES = {"headline": 5000, "budgets": 5000, "haze": 1000}
_ELSEWHERE = 2000  # samples of the other sections, and of further calibration seeds in the headline
_BUDGET = {
    "headline": "fast",
    "edges": "demo",
    "bias": "demo",
    "trajectory": "fast",
    "samplers": "fast",
    "ablation": "demo",
    "timesteps": "demo",
}


@dataclass(frozen=True)
class Settings:
    """The options of the command line.

    Attributes:
        sections: which parts of the study.
        pattern: glob of ``section/name``; other rows are left alone.
        samples, budget: None for each section's own default.
        steps: of the sampler, for calibration and evaluation alike.
        fast_steps: of DPM-Solver++ in the section about other samplers.
        seeds: of the calibration; the first is that of every section, the others are for the headline's spread.
        noise: seed of the evaluation's noise, one for all rows, so that all are pairs.
        model: ``zoo:NAME`` or a pipeline folder.
        device: where samples are drawn; quantizing is done on the CPU.
        memory: bytes of activations held in memory while quantizing, the rest goes to the cache's disk.
        resume: skip rows that exist with the same protocol.
    """

    sections: tuple[str, ...] = SECTIONS
    pattern: str = "*"
    samples: int | None = None
    budget: str | None = None
    steps: int = 20
    fast_steps: int = 20
    seeds: tuple[int, ...] = (0, 1, 2)
    noise: int = 0
    batch: int = 16
    model: str = MODEL
    device: str = "cpu"
    memory: int = 2 * 2**30
    rounds: int = 30
    resume: bool = True
    results: Path = RESULTS
    cache: Path = CACHE

    def samples_of(self, section: str, seed: int | None = None) -> int:
        """Return the number of samples of a section's rows; fewer for the headline's further seeds."""
        further = seed is not None and seed != self.seeds[0]
        default = _ELSEWHERE if further else _SAMPLES.get(section, _ELSEWHERE)
        return min(self.samples, default) if further and self.samples else self.samples or default

    def budget_of(self, section: str) -> str:
        """Return the budget of a section's recipes."""
        return self.budget or _BUDGET.get(section, "fast")
