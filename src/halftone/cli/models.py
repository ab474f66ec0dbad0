"""From what the user typed to a pipeline, on a device and an engine."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halftone.foundation.errors import ConfigError
from halftone.foundation.files import label

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from halftone.artifact.schema import Description

_ZOO = "zoo:"
_MEASURED = 4  # rows at the most by which engines are compared: what wins by more wins, and the calls are many
_PICTURES = ("image", "control_image", "mask_image")
_WITHOUT = {"FluxKontextPipeline"}  # makes pictures of prompts alone, too


def resolve(source: str, kind: str = "pipeline") -> str:
    """Return the folder or hub id that ``source`` stands for; ``zoo:NAME`` must be of ``kind``.

    Raises:
        ConfigError: an unknown zoo model, one of another kind, or one without weights.
    """
    if not source.startswith(_ZOO):
        return source
    from halftone.zoo.catalog import folder

    return str(folder(source.removeprefix(_ZOO), kind))


def open_model(source: str, dtype: str = "float32", device: str = "cpu", weights: str = "ready") -> "DiffusionPipeline":
    """Return the pipeline at ``source`` (folder, hub id or zoo:NAME), in ``dtype``, by name.

    Raises:
        ConfigError, ArtifactError: see :func:`halftone.artifact.load_pipeline`, as for ``weights``; or ``device`` is not there.
    """
    located = resolve(source)  # first: its errors need no torch
    import torch
    from diffusers.utils import logging

    from halftone.artifact import load_pipeline

    check_device(device)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        pipe = load_pipeline(located, weights=weights, dtype=getattr(torch, dtype))
    finally:
        if shown:
            logging.enable_progress_bar()
    return pipe if device == "cpu" else pipe.to(device)


def open_to_sample(source: str, device: str, weights: str, dtype: str = "float32") -> "DiffusionPipeline":
    """Return the pipeline at ``source``, of which pictures will be drawn from prompts or labels alone.

    Raises:
        ConfigError, ArtifactError: as ``open_model``; or it needs pictures to start from.
    """
    pipe = open_model(source, dtype, device, weights)
    if dtype == "bfloat16" and getattr(pipe, "vae", None) is None:
        # Such pipelines hand their own numbers to NumPy, which has no bfloat16.
        expected = "a pipeline with an autoencoder"
        raise ConfigError(f"--dtype {dtype}", expected, type(pipe).__name__, "Leave it out, or take float16.")
    refuse_pictures(pipe, source, "In Python, after `import halftone`: pipe(PROMPT, image=...).")
    return pipe


def check_device(device: str) -> None:
    """Raise a ConfigError, which names what there is, unless ``device`` (cpu, cuda, cuda:1 ...) can be used."""
    import torch

    there = ["cpu"] + [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    if device not in there and not (device == "cuda" and len(there) > 1):
        missing = "" if len(there) > 1 else " (PyTorch sees no CUDA device)"
        raise ConfigError("--device", "one of " + ", ".join(there), f"'{device}'{missing}")


def is_quantized(pipe: "DiffusionPipeline") -> bool:
    """Return whether the pipeline's denoiser holds quantized layers."""
    from halftone.models.denoiser import denoiser
    from halftone.nn.layers import quantized_layers

    return next(quantized_layers(denoiser(pipe)), None) is not None


def use_engine(pipe: "DiffusionPipeline", engine: str | None, rows: int = 1) -> list[str]:
    """Let all that is quantized run on ``engine``; None leaves the choice to each layer.

    Args:
        rows: of a denoiser call to come, by which ``auto`` measures.

    An engine that takes whole networks gets those that are called at every step; in the others each layer chooses. Where
    this machine has such an engine, ``auto`` measures it against the layers' own kernels.

    Returns:
        What is worth saying about it.

    Raises:
        ConfigError: no such engine, or the model is float.
        KernelError: the engine does not run on this machine; nothing else is run in its place.
    """
    if engine is None:
        return []
    from torch import nn

    from halftone.engines import require, set_engine
    from halftone.engines.fastest import fastest
    from halftone.engines.select import network_engines
    from halftone.kernels.select import AUTO
    from halftone.models.denoiser import denoiser, other_denoisers
    from halftone.models.example_inputs import example_inputs
    from halftone.nn.layers import quantized_layers

    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    layers = [layer for part in parts for _, layer in quantized_layers(part)]
    require(engine, weight_only=not any(layer.is_quantized("input") for layer in layers))
    if not layers:
        raise ConfigError("--engine", "a quantized model", "a float one, which runs on PyTorch's own kernels")
    notes: list[str] = []
    network = denoiser(pipe)
    if engine == AUTO and next(quantized_layers(network), None) is not None:
        measured = fastest(network, lambda: example_inputs(network, min(rows, _MEASURED)))
        engine, notes = (measured.engine, [measured.sentence]) if measured else (engine, [])
    stepping = [network, *other_denoisers(pipe).values()]
    for part in parts:
        if next(quantized_layers(part), None) is not None:
            whole = engine in network_engines() and not any(part is each for each in stepping)
            set_engine(part, AUTO if whole else engine)
    return notes


def takes(pipe: "DiffusionPipeline", argument: str) -> bool:
    """Return whether the pipeline can be called with ``argument``."""
    return argument in inspect.signature(type(pipe).__call__).parameters


def refuse_pictures(pipe: "DiffusionPipeline", model: str, fix: str) -> None:
    """Raise a ConfigError, with how to ``fix`` it, for a pipeline that is called with pictures: these commands have none.

    Inpainting, image to image and ControlNets are such; diffusers would stop in the middle of their first call.
    """
    kind = type(pipe).__name__
    if kind not in _WITHOUT and any(takes(pipe, argument) for argument in _PICTURES):
        raise ConfigError(
            model, "a pipeline that needs prompts or labels alone", f"a {kind}, which needs pictures", fix
        )


def conditions(
    pipe: "DiffusionPipeline", count: int, prompts: list[str] | None = None, label: int | None = None
) -> dict[str, list[Any]]:
    """Return the pipeline arguments with one value for each of ``count`` samples.

    Prompts are taken in turn. Without a ``label``, a pipeline that needs labels gets ones spread evenly over its classes.

    Raises:
        ConfigError: the pipeline takes no prompt or no label, or needs one that was not given.
    """
    kind = type(pipe).__name__
    if prompts is not None:
        if not takes(pipe, "prompt"):
            raise ConfigError("prompts", "a pipeline that takes a prompt", kind, "Leave them out.")
        return {"prompt": [prompts[n % len(prompts)] for n in range(count)]}
    if takes(pipe, "prompt"):
        raise ConfigError(kind, "--prompt TEXT or --prompts FILE", "none", "This pipeline cannot sample without one.")
    if not takes(pipe, "class_labels"):
        if label is not None:
            raise ConfigError("--label", "a pipeline that takes class labels", kind, "Leave it out.")
        return {}
    if label is not None:
        return {"class_labels": [label] * count}
    classes = _classes(pipe)
    if classes is None:
        raise ConfigError(kind, "--label N", "none", "This pipeline cannot sample without one.")
    return {"class_labels": [n * classes // count for n in range(count)]}


def cut_off(pipe: "DiffusionPipeline", given: list[str] | None, negative: str | None = None) -> list[str]:
    """Return a sentence if text encoders of the pipeline do not see the ends of some prompts; none where they see all."""
    notes, prompts = [], [*(given or []), *([negative] if negative else [])]
    for name, tokenizer in ((name, getattr(pipe, name, None)) for name in ("tokenizer", "tokenizer_2")):
        most = getattr(tokenizer, "model_max_length", None)
        # Those without a limit say so with a number beyond all prompts.
        if not prompts or tokenizer is None or not isinstance(most, int) or most > 10**6:
            continue
        # Of ASCII a letter is a token at most: most prompts need no tokenizer. Other letters may be taken apart first.
        room = most - tokenizer.num_special_tokens_to_add()
        asked = [text for text in prompts if not text.isascii() or len(text) >= room]
        lengths = [len(ids) for ids in tokenizer(asked, truncation=False, verbose=False).input_ids] if asked else []
        long = [text for text, length in zip(asked, lengths, strict=True) if length > most]
        if long:
            notes.append(
                f"{len(long)} of {len(prompts)} prompts are longer than the {most} tokens that the {name} passes on, and are cut "
                f"off; the first: '{long[0][:60]}...'"
            )
    return notes[:1]


def options(pipe: "DiffusionPipeline", **wanted: Any) -> dict[str, Any]:
    """Return those arguments of a pipeline call that are not None.

    Raises:
        ConfigError: the pipeline does not take one of them.
    """
    given = {name: value for name, value in wanted.items() if value is not None}
    for name, value in given.items():
        if not takes(pipe, name):
            raise ConfigError(name, f"a pipeline that takes it, for {value!r}", type(pipe).__name__, "Leave it out.")
    return given


def _classes(pipe: "DiffusionPipeline") -> int | None:
    """Return the number of classes that a class-conditional denoiser knows, None where its config does not say."""
    from halftone.models.denoiser import denoiser

    config = getattr(denoiser(pipe), "config", {})
    found = config.get("num_class_embeds") or config.get("num_embeds_ada_norm")
    return int(found) if found else None


def local_artifact(source: str, pipe: "DiffusionPipeline") -> Path | None:
    """Return the folder of a quantized model on this disk, in which results may be kept; None for any other model."""
    folder = Path(source)
    return folder if folder.is_dir() and is_quantized(pipe) else None


def doubts(model: str, pipe: "DiffusionPipeline", against: str | None, other: "DiffusionPipeline | None") -> list[str]:
    """Return sentences about why ``against`` is not the float original of ``model``; none where nothing speaks against it."""
    from halftone.artifact import described
    from halftone.models.denoiser import denoiser
    from halftone.models.fingerprint import source_fingerprint

    if against is None or other is None:
        return []
    if is_quantized(other):
        return [f"{label(against)} is itself quantized: nothing here is measured against a float model"]
    found = described(denoiser(pipe))
    source = found.notes.get("source") if found else None
    if source is None or source == source_fingerprint(denoiser(other)):
        return []
    return [f"{label(against)} is not the float model that {label(model)} was made from: its weights differ"]


def rows_of(pipe: "DiffusionPipeline", pictures: int, guidance: float | None) -> int:
    """Return how many rows a denoiser call has for so many pictures: guidance doubles them, unless the denoiser was taught it."""
    from halftone.models.denoiser import denoiser

    own = inspect.signature(type(pipe).__call__).parameters.get("guidance_scale")
    scale = own.default if own is not None and guidance is None else guidance
    config = getattr(denoiser(pipe), "config", {})
    taught = any(config.get(name) for name in ("guidance_embeds", "time_cond_proj_dim"))
    return pictures * (2 if isinstance(scale, int | float) and scale > 1 and not taught else 1)


def unlike_calibration(pipe: "DiffusionPipeline", steps: int, guidance: float | None = None) -> list[str]:
    """Return a sentence if a sampling differs from the one that the quantized denoiser was calibrated on.

    Rounding to nearest without quantized activations has looked at no sampling.
    """
    from halftone.artifact import described
    from halftone.models.denoiser import denoiser

    found = described(denoiser(pipe))
    known = (found.trajectory if found else None) or {}
    if found is None or not known or not _calibrated(found):
        return []
    now: dict[str, Any] = {"scheduler": type(pipe.scheduler).__name__, "steps": steps}
    own = inspect.signature(type(pipe).__call__).parameters.get("guidance_scale")
    if guidance is None and own is not None:
        guidance = own.default  # what the pipeline is called with
    then = {key: known.get(key) for key in now}
    scale = (known.get("arguments") or {}).get("guidance_scale")
    if guidance is not None and scale is not None:
        now["guidance"], then["guidance"] = guidance, scale
    different = [f"{key} {now[key]} (calibrated: {then[key]})" for key in now if then[key] not in (None, now[key])]
    return [f"another sampling than the model was calibrated for: {', '.join(different)}"] if different else []


def _calibrated(found: "Description") -> bool:
    steps = (found.recipe.get("steps") or {}).values() if isinstance(found.recipe.get("steps"), dict) else ()
    learned = any(isinstance(step, dict) and step.get("method") != "rounding/nearest" for step in steps)
    return learned or any(scheme.input for scheme in found.schemes.values())
