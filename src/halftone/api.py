"""The Python API: quantize a pipeline in place."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline

from halftone.artifact import attach, save_pipeline
from halftone.artifact.attachment import refuse_unattachable
from halftone.calibrate.conditions import prompts_of
from halftone.foundation.build import plain
from halftone.foundation.errors import ConfigError
from halftone.foundation.files import label
from halftone.foundation.progress import Progress
from halftone.methods.contract import Run
from halftone.models.component import component as part_of
from halftone.models.controlnets import refuse_unfit_controlnets
from halftone.recipes import Quantized, Recipe, load, run_recipe
from halftone.report.card import checked_base_model, write_card
from halftone.report.pieces import QUANTIZED, RUN

if TYPE_CHECKING:
    from halftone.artifact.on_load import RoundOnLoad


@dataclass(frozen=True)
class Result:
    """What became of a pipeline.

    Attributes:
        pipe: the pipeline, one component quantized in place; ``pipe.save_pretrained`` writes the artifact alone.
        report: recipe, calibration identity, steps, seconds and layers, JSON-safe.
    """

    pipe: DiffusionPipeline
    report: dict[str, Any]

    def save(self, folder: str | Path, *, base_model: str | None = None, overwrite: bool = False) -> None:
        """Write the artifact with its card and the records from which ``halftone report`` makes a page, as the command line does.

        Where several components were quantized, it is the denoiser's result that has the records.

        >>> halftone.quantize(pipe, "q-diffusion-w4a8").save("out")  # doctest: +SKIP

        Args:
            base_model: the hub id that the card names; where the pipeline was loaded by one, that is known.
            overwrite: whether to replace an older artifact.

        Raises:
            ConfigError: ``base_model`` is no hub id.
            OutputError: the folder cannot be written, or is there already.
        """
        place = Path(folder)
        source = label(str(getattr(self.pipe.config, "_name_or_path", None) or "")) or type(self.pipe).__name__
        report = {"model": source, **self.report}
        times = {"seconds": report.pop("seconds"), "device": str(self.pipe.device)}
        if base_model is not None:
            report["base_model"] = checked_base_model(base_model)
        records = {QUANTIZED: report, RUN: times}
        save_pipeline(
            self.pipe, place, overwrite, {name: dumps(each, indent=1) + "\n" for name, each in records.items()}
        )
        write_card(place)


def quantize(
    pipe: DiffusionPipeline,
    recipe: str | Recipe,
    *,
    steps: int = 50,
    seed: int = 0,
    budget: str = "fast",
    overrides: Sequence[str] = (),
    each: Mapping[str, Sequence[Any]] | None = None,
    work: str | Path | None = None,
    resume: bool = False,
    memory: int | None = None,
    keep: torch.dtype = torch.float32,
    roles: str | Path | None = None,
    component: str | None = None,
    later: Collection[str] = (),
    progress: Progress | None = None,
) -> Result:
    """Quantize the pipeline's denoiser, or another component, in place.

    >>> result = halftone.quantize(pipe, "q-diffusion-w4a8", steps=50, seed=0)  # doctest: +SKIP
    >>> result.save("out")  # doctest: +SKIP

    Args:
        recipe: a recipe's name, the path of a YAML file, or a loaded recipe.
        steps: sampling steps of the calibration; quantize for the sampler you will use.
        seed: of every random choice.
        budget: ``demo``, ``fast`` or ``paper``.
        overrides: ``path=value`` changes of the recipe.
        each: pipeline arguments with one value a calibration trajectory, such as ``{"prompt": [...]}``; of a pipeline that takes
            prompts, by default those in a ``prompts.txt`` of the folder that it came from, or a hundred that
            come with Halftone. Name those that you will use.
        work: folder for unfinished work; with it the run can be killed and resumed.
        resume: go on with what is in ``work``.
        memory: bytes of activations held in memory while walking (the rest is spilled to ``work``).
        keep: dtype in which activations are held.
        roles: role table (TOML) for an architecture without one.
        component: name of the one to quantize (``vae``, ``text_encoder`` ...); None is the denoiser. Call it once for each.
            Of an autoencoder the decoder is calibrated; the encoder, which only image inputs need, gets its weights rounded.
        later: components that will be quantized after this one: the report does not say of them that they stay float.
        progress: where to show progress; nothing by default.

    Raises:
        ConfigError, MatchError, CalibrationError: see :mod:`halftone.foundation.errors`.
    """
    loaded = recipe
    if not isinstance(loaded, Recipe):
        loaded = load(loaded, budget, list(overrides), part_of(pipe, component).parameters)
    refuse_unfit_controlnets(pipe)
    for name in (component, *later):
        refuse_unattachable(part_of(pipe, name).owner)
    if each is None and "prompt" in signature(type(pipe).__call__).parameters:
        each = {"prompt": prompts_of(pipe)[0]}
    run = Run(
        seed=seed,
        work=Path(work) if work else None,
        memory=memory,
        keep=keep,
        progress=progress or Progress(enabled=False),
    )
    done: Quantized = run_recipe(
        pipe, loaded, steps, run, resume, each, Path(roles) if roles else None, component, later
    )
    report = {**done.plain(), "budget": budget, "seed": seed}
    notes = {"budget": budget, "seed": seed, "roles": done.roles(), "source": done.source}
    if done.left_float:
        notes["left_float"] = done.left_float
    attach(done.module, report["recipe"], done.identity, notes)
    return Result(pipe, report)


def HalftoneConfig(recipe: str | Recipe, *, overrides: Sequence[str] = ()) -> "RoundOnLoad":  # noqa: N802 - named as diffusers' are
    """Return a ``quantization_config`` with which diffusers rounds a float model while it loads it.

    >>> config = PipelineQuantizationConfig(quant_mapping={"unet": HalftoneConfig("rtn-w8a32")})  # doctest: +SKIP
    >>> pipe = DiffusionPipeline.from_pretrained(folder, quantization_config=config)  # doctest: +SKIP

    For models of diffusers (denoisers, ControlNets, autoencoders) and text encoders (transformers 5). Nothing is calibrated, so
    only the weights can be quantized, and only by rounding to nearest.

    Args:
        recipe: a recipe's name, the path of a YAML file, or a loaded recipe.
        overrides: ``path=value`` changes of the recipe.

    Raises:
        ConfigError: an unknown recipe, or one that needs calibration.
    """
    from halftone.artifact.on_load import RoundOnLoad
    from halftone.methods.rounding.nearest import Nearest

    loaded = recipe if isinstance(recipe, Recipe) else load(recipe, overrides=list(overrides))
    *others, last = loaded.methods().values()
    activations = any(rule.input or rule.operands for rule in loaded.policy)
    if others or type(last) is not Nearest or activations:
        got = "quantized activations" if activations else ", ".join(step["method"] for step in loaded.steps.values())
        fix = "Calibrate with halftone.quantize(pipe, ...), or name one such as rtn-w8a32."
        raise ConfigError(f"recipe {loaded.name}", "weights only, rounded to nearest", got, fix)
    return RoundOnLoad(loaded.policy, last.range, plain(loaded))
