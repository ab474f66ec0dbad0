"""Where pipelines and samples come from: each made once, kept in the cache, used by every row."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler

import halftone
from benchmarks.q_diffusion.plan import Row
from benchmarks.q_diffusion.record import Model, recipe_of, steps_of
from benchmarks.q_diffusion.settings import Settings
from benchmarks.records import commit, digest_of, recipe_digest
from halftone.artifact import load_pipeline, save_pipeline
from halftone.evaluate.sample import Calls, Samples, protocol, sample, trajectories
from halftone.foundation.errors import ConfigError
from halftone.foundation.files import write_atomically
from halftone.foundation.progress import Progress
from halftone.models.denoiser import denoiser
from halftone.models.fingerprint import fingerprint

_FACTS = "quantize.json"


class Workshop:
    """Loads, quantizes and samples for the rows of one run."""

    def __init__(self, settings: Settings, progress: Progress | None = None) -> None:
        self.settings = settings
        self.progress = progress or Progress(enabled=False)
        self.folder = _folder(settings.model)
        name = settings.model if settings.model.startswith("zoo:") else self.folder.name
        self.model = Model(name, fingerprint(denoiser(self.load_float())))

    @property
    def part(self) -> Path:
        """The denoiser's folder inside a pipeline's."""
        pipe = self.load_float()
        name = next(name for name, each in pipe.components.items() if each is denoiser(pipe))
        return Path(name)

    def load_float(self, sampler: str = "ddim") -> DiffusionPipeline:
        """Return the float pipeline with a sampler."""
        return _with_sampler(load_pipeline(self.folder), sampler)

    # Quantized models.

    def artifact_of(self, row: Row) -> Path:
        """Return the folder of the row's quantized model, which may not be there yet; equal work has one folder."""
        assert row.recipe is not None
        key = {
            "model": self.model.sha256,
            "recipe": recipe_digest(recipe_of(row)),
            "seed": row.seed,
            "sampler": row.calibrated_for,
            "steps": steps_of(row.calibrated_for, self.settings),
        }
        return self.settings.cache / "models" / f"{row.recipe}-{digest_of(key)}"

    def quantized(self, row: Row, engine: str) -> tuple[DiffusionPipeline, dict[str, Any]]:
        """Return the row's pipeline, from its files, on ``engine``, and the facts of its quantization."""
        folder = self.artifact_of(row)
        if not (folder / _FACTS).exists():
            self._quantize(row, folder)
        pipe = _with_sampler(load_pipeline(folder / "model"), row.sampler)
        halftone.set_engine(denoiser(pipe), engine)
        return pipe.to(self.settings.device), json.loads((folder / _FACTS).read_text(encoding="utf-8"))

    def _quantize(self, row: Row, folder: Path) -> None:
        work = folder / "work"
        resumed, began = work.exists(), time.monotonic()
        result = halftone.quantize(
            self.load_float(row.calibrated_for),
            recipe_of(row),
            steps=steps_of(row.calibrated_for, self.settings),
            seed=row.seed,
            budget=row.budget,
            work=work,
            resume=resumed,
            memory=self.settings.memory,
            progress=self.progress,
        )
        seconds = time.monotonic() - began
        shutil.rmtree(folder / "samples", ignore_errors=True)  # of a model that was there before
        save_pipeline(result.pipe, folder / "model", overwrite=True)
        facts = {
            "seconds": round(seconds, 1),
            # Then the seconds are those of the last part only.
            "resumed": resumed,
            "steps_seconds": result.report["seconds"],
            "split": _split_of(result.report),
            "commit": commit(),
        }
        write_atomically(folder / _FACTS, json.dumps(facts, indent=1) + "\n")
        shutil.rmtree(work, ignore_errors=True)

    # Samples.

    def float_samples(self, count: int, sampler: str) -> Samples:
        """Return the float model's samples, the same for all rows of a sampler."""
        file = self._cache_file("float", sampler)
        return self._stored(file, count, sampler, lambda: self.load_float(sampler).to(self.settings.device))

    def quantized_samples(self, row: Row, pipe: DiffusionPipeline, engine: str) -> tuple[Samples, dict[str, Any]]:
        """Return the samples of the row's quantized ``pipe``, drawn once for all rows that share its model, and the commit then."""
        given = self.settings
        name = f"{row.sampler}{steps_of(row.sampler, given)}-noise{given.noise}-{given.device}-{engine}.npz"
        file = self.artifact_of(row) / "samples" / name
        found = self._stored(file, row.samples, row.sampler, lambda: pipe)
        with np.load(file) as stored:
            return found, json.loads(str(stored["commit"])) if "commit" in stored else {}

    def _stored(self, file: Path, count: int, sampler: str, make: Callable[[], DiffusionPipeline]) -> Samples:
        """Return the first ``count`` samples in ``file``, or draw them with the pipeline that ``make`` returns."""
        if file.exists():
            with np.load(file) as stored:
                images, latents, seconds = stored["images"], stored["latents"], float(stored["seconds"])
            if len(images) >= count:
                # A sample depends on its seed and index alone, so fewer samples are the first of many.
                facts = self._protocol(count, sampler)
                return Samples(images[:count], latents[:count], facts, seconds * count / len(images))
        drawn = self.draw(make(), count, sampler)
        made = {"seconds": np.array(drawn.seconds), "commit": np.array(json.dumps(commit()))}
        _save(file, images=drawn.images, latents=drawn.latents, **made)
        return drawn

    def float_calls(self, count: int) -> Calls:
        """Return every denoiser call of the float model's sampling with DDIM."""
        file = self._cache_file(f"calls-{count}", "ddim")
        if file.exists():
            with np.load(file) as stored:
                return Calls(stored["timesteps"], stored["inputs"], stored["outputs"])
        calls = self.calls(self.load_float().to(self.settings.device), count)
        _save(file, timesteps=calls.timesteps, inputs=calls.inputs, outputs=calls.outputs)
        return calls

    def draw(self, pipe: DiffusionPipeline, count: int, sampler: str) -> Samples:
        """Return samples of a pipeline, from the same noise as everybody's."""
        given = self.settings
        return sample(pipe, count, steps_of(sampler, given), given.noise, given.batch, self.progress)

    def calls(self, pipe: DiffusionPipeline, count: int) -> Calls:
        """Return every denoiser call of a pipeline's sampling with DDIM."""
        given = self.settings
        return trajectories(pipe, count, given.steps, given.noise, given.batch, self.progress)

    def _protocol(self, count: int, sampler: str) -> Any:
        given, pipe = self.settings, self.load_float(sampler)
        facts = protocol(pipe, count, steps_of(sampler, given), given.noise, given.batch)
        return replace(facts, device=given.device)

    def _cache_file(self, what: str, sampler: str) -> Path:
        given = self.settings
        key = f"{self.model.sha256[:12]}-{sampler}{steps_of(sampler, given)}-noise{given.noise}-{given.device}"
        return given.cache / "float" / f"{what}-{key}.npz"


def _folder(model: str) -> Path:
    """Return the folder of the float model, which must be there."""
    folder = Path(model)
    if model.startswith("zoo:"):
        folder = Path(str(resources.files("halftone.zoo"))) / "weights" / model.removeprefix("zoo:")
    if not folder.is_dir():
        raise ConfigError("--model", "a pipeline folder, or a zoo model that is there", model, "Train it, or name one.")
    return folder


def _with_sampler(pipe: DiffusionPipeline, sampler: str) -> DiffusionPipeline:
    """Give the pipeline a sampler, whatever it was saved with; both are made from the same noise schedule."""
    config = pipe.scheduler.config
    if sampler == "dpm":
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++")
    elif not isinstance(pipe.scheduler, DDIMScheduler):
        pipe.scheduler = DDIMScheduler.from_config(config)
    return pipe


def _split_of(report: dict[str, Any]) -> dict[str, Any]:
    """Return score and decision for every shortcut, from a quantization's report."""
    layers = (report["steps"].get("split") or {}).get("layers") or {}
    return {path: {key: facts[key] for key in ("score_db", "split")} for path, facts in layers.items()}


def _save(file: Path, **arrays: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    partial.replace(file)


def seconds_per_image_call(workshop: Workshop) -> float:
    """Return the time of one denoiser call for one image, from two batches of noise."""
    pipe, batch = workshop.load_float().to(workshop.settings.device), workshop.settings.batch
    size, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
    noise = torch.randn(batch, channels, size, size, device=workshop.settings.device)
    with torch.inference_mode():
        pipe.unet(noise, 500)
        began = time.monotonic()
        pipe.unet(noise, 500)
    return (time.monotonic() - began) / batch
