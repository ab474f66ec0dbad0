"""Where models and pictures come from: each made once, kept in the cache, used by every row."""

import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from safetensors import safe_open

import halftone
from benchmarks.records import commit, digest_of, recipe_digest
from benchmarks.text_to_image.choices import CHOICES, NONE
from benchmarks.text_to_image.plan import Row
from benchmarks.text_to_image.settings import Settings
from benchmarks.text_to_image.uses import PLAIN, USES, Use, arguments, made_for, with_sampler
from halftone.artifact import load_pipeline, save_pipeline
from halftone.calibrate.conditions import digest
from halftone.evaluate.sample import Protocol, Samples, sample
from halftone.foundation.errors import ConfigError
from halftone.foundation.files import sha256_of, write_atomically
from halftone.foundation.progress import Progress
from halftone.models.denoiser import denoiser
from halftone.models.fingerprint import fingerprint
from halftone.recipes import Recipe
from halftone.zoo.catalog import folder as zoo_folder

ALIGNMENT = "alignment.safetensors"
_FACTS = "quantize.json"
_LINEAR = "rtn-"
_MASKS = 64  # that a ControlNet is calibrated on
_OTHER_NOISE = 1000  # is added to the seed of what nothing is measured on


@dataclass(frozen=True)
class Known:
    """What the model's own card leaves for measuring it.

    Attributes:
        features: of all real pictures ``[M, D]``, in the mean latents of the model's encoder.
        concepts, captions: of each of them.
        prompts: the captions that the model is evaluated with.
        long: each of them with all its keywords.
    """

    features: np.ndarray
    concepts: list[str]
    captions: list[str]
    long: dict[str, str]
    prompts: list[str]

    @property
    def plain(self) -> list[int]:
        """The numbers of one picture of each concept, the first: other skin tones come after it."""
        return [self.concepts.index(concept) for concept in dict.fromkeys(self.concepts)]

    @property
    def others(self) -> list[str]:
        """One caption of each concept that nothing is evaluated with: what to calibrate on."""
        evaluated = {self.concept(prompt) for prompt in self.prompts}
        return [self.captions[number] for number in self.plain if self.concepts[number] not in evaluated]

    def concept(self, prompt: str) -> str:
        """Return the concept that a prompt names."""
        return self.concepts[self.captions.index(prompt)]


class Workshop:
    """Loads, quantizes and draws for the rows of one run."""

    def __init__(self, settings: Settings, progress: Progress | None = None) -> None:
        self.settings, self.progress = settings, progress or Progress(enabled=False)
        name = settings.model.removeprefix("zoo:")
        self.folder = zoo_folder(name) if settings.model.startswith("zoo:") else Path(settings.model)
        self.model = {"name": name if settings.model.startswith("zoo:") else self.folder.name}
        self.model["sha256"] = fingerprint(denoiser(self.load_float()))

    @cached_property
    def known(self) -> Known:
        """The prompts and what they name.

        Raises:
            ConfigError: the model's folder does not tell.
        """
        file = self.folder / ALIGNMENT
        if not file.is_file():
            raise ConfigError(str(self.folder), f"a text-to-image model with its {ALIGNMENT}", "none")
        with safe_open(file, "np") as stored:
            said = {key: json.loads(value) for key, value in stored.metadata().items()}
            features = stored.get_tensor("features").astype(np.float64)
        prompts = said["prompts"][: self.settings.prompts]
        return Known(features, said["concepts"], said["captions"], said.get("long", {}), prompts)

    def texts(self, use: Use) -> list[str]:
        """Return the prompts of a use."""
        return [self.known.long.get(text, text) if use.long else text for text in self.known.prompts]

    def load_float(self) -> StableDiffusionPipeline:
        """Return the float pipeline."""
        pipe: Any = load_pipeline(self.folder, dtype=torch.float32)  # it ships in half precision
        return pipe.to(self.settings.device)

    # Quantized models.

    def recipe(self, row: Row) -> Recipe:
        """Return the row's resolved recipe."""
        assert row.recipe is not None
        given = [f"calibration.arguments={{guidance_scale: {self.settings.guidance}}}"]
        return CHOICES.get(row.choice, NONE).made(row.recipe, self.settings.budget, given)

    def artifact_of(self, row: Row) -> Path:
        """Return the folder of the row's quantized model, which may not be there yet; equal work has one folder."""
        use = USES[row.use]
        if self._changes_nothing(row):
            return self.artifact_of(replace(row, choice=""))
        sampler = {"dpm": use.dpm, "steps": use.steps} if use.recalibrated else {}
        key = {
            "model": self.model["sha256"],
            "recipe": recipe_digest(self.recipe(row)),
            "seed": self.settings.seed,
            "steps": self.settings.steps,
            **sampler,
        }
        return self.settings.cache / "models" / f"{row.recipe}-{digest_of(key)}"

    def _changes_nothing(self, row: Row) -> bool:
        """Whether the linear row of the same choice, which comes first, found no token sinks in the float model."""
        if not CHOICES.get(row.choice, NONE).may_change_nothing or str(row.recipe).startswith(_LINEAR):
            return False
        linear = replace(row, recipe=_LINEAR + row.bits, method="linear")
        facts = self.artifact_of(linear) / _FACTS
        return facts.exists() and not any(json.loads(facts.read_text(encoding="utf-8"))["sinks"].values())

    def quantized(self, row: Row) -> tuple[StableDiffusionPipeline, dict[str, Any]]:
        """Return the row's pipeline, from its files, and the facts of its quantization."""
        folder = self.artifact_of(row)
        if not (folder / _FACTS).exists():
            self._quantize(row, folder)
        pipe: Any = load_pipeline(folder / "model", dtype=torch.float32)
        return pipe.to(self.settings.device), json.loads((folder / _FACTS).read_text(encoding="utf-8"))

    def _quantize(self, row: Row, folder: Path) -> None:
        given, use, work = self.settings, USES[row.use], folder / "work"
        pipe, steps = self.load_float(), given.steps
        if use.recalibrated:
            pipe, steps = with_sampler(pipe, use), use.steps or given.steps
        prompts = self.known.others or self.known.prompts
        result = halftone.quantize(
            pipe, self.recipe(row), steps=steps, seed=given.seed, budget=given.budget, each={"prompt": prompts},
            work=work, resume=work.exists(), memory=given.memory, progress=self.progress,
        )  # fmt: skip
        save_pipeline(result.pipe, folder / "model", overwrite=True)
        facts = {"seconds": result.report["seconds"], "commit": commit()}
        sinks = result.report["steps"].get("sinks")
        facts |= {"sinks": {path: each["kept"] for path, each in sinks["layers"].items()}} if sinks else {}
        write_atomically(folder / _FACTS, json.dumps(facts, indent=1) + "\n")
        shutil.rmtree(work, ignore_errors=True)

    # Pictures.

    def float_samples(self, name: str) -> list[Samples]:
        """Return the float model's pictures in a use, a set for each seed of the noise."""
        return self._drawn(
            self.settings.cache / "float" / self.model["sha256"][:12],
            replace(USES[name].drawing, parts=("unet",)),
            self.load_float,
        )

    def quantized_samples(self, row: Row) -> list[Samples]:
        """Return the pictures of the row's model in its use."""
        use = USES[row.use]
        load_model = (lambda: self.quantized(row)[0]) if "unet" in use.parts else self.load_float
        net = (lambda: self._controlnet(row)) if "controlnet" in use.parts else lambda: None
        return self._drawn(self.artifact_of(row) / "samples", use.drawing, load_model, net)

    def _controlnet(self, row: Row) -> ControlNetModel:
        """Return the ControlNet quantized with the row's recipe, calibrated beside the float U-Net."""
        given, seen = self.settings, self._masks_to_calibrate_on()
        key = [self.artifact_of(row).name, self.attached(USES[row.use]), digest(seen)]
        folder = given.cache / "models" / f"controlnet-{row.recipe}-{digest_of(key)}"
        if not (folder / _FACTS).exists():
            made, work = made_for(self.load_float(), Use(kind="controlnet"), given), folder / "work"
            result = halftone.quantize(
                made, self.recipe(row), steps=given.steps, seed=given.seed, budget=given.budget, each=seen,
                component="controlnet", work=work, resume=work.exists(), memory=given.memory, progress=self.progress,
            )  # fmt: skip
            result.pipe.controlnet.save_pretrained(folder / "net")
            write_atomically(folder / _FACTS, json.dumps({"seconds": result.report["seconds"]}, indent=1) + "\n")
            shutil.rmtree(work, ignore_errors=True)
        net: Any = ControlNetModel.from_pretrained(folder / "net")
        return net.eval().to(given.device)  # type: ignore[no-any-return]

    def _masks_to_calibrate_on(self) -> dict[str, list]:
        """Return prompts that nothing is evaluated with, and masks of the float model's pictures of them, smaller and moved."""
        others, given = self.known.others or self.known.prompts, self.settings
        # From all over the list: its head is of one kind.
        numbers = np.linspace(0, len(others) - 1, min(_MASKS, len(others))).round().astype(int)
        texts = [others[number] for number in numbers]
        key = digest_of([texts, given.steps, given.guidance, given.seed, given.device])
        file = given.cache / "float" / self.model["sha256"][:12] / f"masks-{key}.npz"
        if not file.exists():
            how, noise = {"guidance_scale": given.guidance}, given.seed + _OTHER_NOISE
            pipe, each = self.load_float(), {"prompt": texts}
            _save(file, sample(pipe, len(texts), given.steps, noise, given.batch, self.progress, each, **how))
        seen, _ = arguments(Use(kind="controlnet"), texts, _read(file).images, given, calibrating=True)
        return seen

    def attached(self, use: Use) -> dict[str, str]:
        """Return digests of the weights that a use puts on the model."""
        given = self.settings
        folders = {"lora": given.lora if use.lora is not None else None}
        folders["controlnet"] = given.controlnet if use.kind == "controlnet" else None
        return {
            name: sha256_of(next(iter(sorted(folder.glob("*.safetensors")))))[:16]
            for name, folder in folders.items()
            if folder is not None
        }

    def _drawn(self, place: Path, use: Use, load_model: Any, net: Any = lambda: None) -> list[Samples]:
        given, pipe, found = self.settings, None, []
        texts, steps = self.texts(use), use.steps or given.steps
        for number, seed in enumerate(given.seeds):
            each, call = arguments(use, texts, self._start(use, number), given)
            key = digest_of([asdict(use), self.attached(use), digest(each), call, steps, seed, given.device])
            file = place / f"{key}.npz"
            if not file.exists():
                pipe = pipe or made_for(load_model(), use, given, net())
                _save(file, sample(pipe, len(texts), steps, seed, given.batch, self.progress, each, **call))
            found.append(_read(file))
        return found

    def given(self, use: Use, number: int) -> dict[str, list]:
        """Return what each picture of a set is drawn with: its prompt, and what it starts from."""
        return arguments(use, self.texts(use), self._start(use, number), self.settings)[0]

    def _start(self, use: Use, number: int) -> np.ndarray | None:
        """Return the pictures that a use starts from: of the same noise, but for what is completed, which would be completed."""
        if use.kind == "text":
            return None
        drawn = self.float_samples(PLAIN)
        return drawn[(number + (use.kind == "inpaint")) % len(drawn)].images


def pooled(sets: list[Samples]) -> Samples:
    """Return the pictures of all seeds as one set."""
    images, latents = (np.concatenate([getattr(each, name) for each in sets]) for name in ("images", "latents"))
    return Samples(images, latents, replace(sets[0].protocol, samples=len(images)), sum(each.seconds for each in sets))


def _save(file: Path, drawn: Samples) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial.npz")
    facts = np.array(json.dumps({"protocol": asdict(drawn.protocol), "seconds": drawn.seconds}))
    np.savez(partial, images=drawn.images, latents=drawn.latents, facts=facts)
    partial.replace(file)


def _read(file: Path) -> Samples:
    with np.load(file) as stored:
        facts = json.loads(str(stored["facts"]))
        return Samples(stored["images"], stored["latents"], Protocol(**facts["protocol"]), facts["seconds"])
