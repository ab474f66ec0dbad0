"""What a run of the study is asked to do."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.records import ROOT

RESULTS = Path(__file__).parent / "results"
CACHE = ROOT / "runs" / "text_to_image"
DOCS = ROOT / "docs" / "results"
SECTIONS = ("quality", "uses", "choices", "latency")
MODEL = "zoo:emoji-sd"


@dataclass(frozen=True)
class Settings:
    """The options of the command line.

    Attributes:
        sections: which parts of the study.
        pattern: glob of ``section/name``; other rows are left alone.
        prompts: how many of the model's own 200 evaluation prompts.
        seeds: of the noise, each with all prompts.
        guidance, steps: of calibration, and of all uses that do not say otherwise.
        seed: of the calibration.
        device: where models are calibrated and pictures drawn; without integer kernels there, they are simulated.
        model: a text-to-image pipeline of the zoo, or a folder with an ``alignment.safetensors``.
        lora, controlnet: folders of the adapters; None leaves their rows out.
        squeezenet: its weights; None leaves its features out.
    """

    sections: tuple[str, ...] = SECTIONS
    pattern: str = "*"
    prompts: int = 200
    seeds: tuple[int, ...] = (0, 1)
    guidance: float = 5.0
    steps: int = 25
    seed: int = 0
    budget: str = "fast"
    batch: int = 16
    rounds: int = 30
    device: str = "cpu"
    model: str = MODEL
    lora: Path | None = None
    controlnet: Path | None = None
    squeezenet: Path | None = None
    memory: int = 2 * 2**30
    resume: bool = True
    results: Path = RESULTS
    cache: Path = CACHE
