"""Whole pipelines: loading with clear errors, saving all or nothing, finding the denoiser."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from torch import nn

from halftone.artifact.folder import INDEX, check_folder, missing_files, read_json
from halftone.artifact.registration import register
from halftone.artifact.weights_file import AGAIN
from halftone.foundation.errors import ArtifactError, ConfigError, HalftoneError, OutputError
from halftone.foundation.files import check_output, staged_folder, write_atomically
from halftone.foundation.wording import some
from halftone.models.controlnets import refuse_unfit_controlnets
from halftone.models.denoiser import name_of_denoiser
from halftone.nn.running import WEIGHTS, set_weights

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

WITHOUT_HUB = (
    "Without a network, fetch it where there is one (hf download OWNER/NAME --local-dir DIR), copy DIR here and name it; "
    "`halftone zoo` lists models that need none."
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def load_pipeline(source: str | Path, *, weights: str = "ready", **kwargs: Any) -> "DiffusionPipeline":
    """Return the diffusers pipeline at ``source``, float or quantized.

    This is ``DiffusionPipeline.from_pretrained`` with errors that say what was expected and what to do. A folder is
    checked before anything in it is loaded. ``dtype`` is understood whatever the version of diffusers.

    Args:
        source: a folder or a hub id.
        weights: how quantized layers keep their codes while they run: ``ready``, a byte each, or ``packed``, 4-bit ones in half a
            byte: less memory for somewhat slower calls. See :func:`halftone.nn.running.set_weights`.
        kwargs: for ``from_pretrained``.

    Raises:
        ConfigError: no such folder or model, not a pipeline, or one whose ControlNet was made for another denoiser.
        ArtifactError: a Halftone artifact that is damaged, foreign, newer than this program, or unsafe.
    """
    register()
    if weights not in WEIGHTS:
        raise ConfigError("weights", "ready or packed", f"'{weights}'")
    pipe = _found(source, kwargs)
    if weights != "ready":
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                set_weights(part, weights)
    return pipe


def _found(source: str | Path, kwargs: dict[str, Any]) -> "DiffusionPipeline":
    folder = Path(source)
    if not folder.is_dir():
        refuse_path(str(source), folder)
        return _load(str(source), ConfigError, "a pipeline on the hub that can be reached", kwargs, WITHOUT_HUB)
    if check_folder(folder):
        kwargs.setdefault("use_safetensors", True)
        return _load(str(source), ArtifactError, "a pipeline that diffusers can load", kwargs)
    return _load(str(source), ConfigError, "a pipeline that diffusers can load", kwargs)


def refuse_path(source: str, path: Path) -> None:
    """Raise a ConfigError unless ``source``, which is no folder, may be a hub id."""
    if path.exists():
        raise ConfigError(source, f"a pipeline folder with {INDEX}", "a file")
    if not _HUB_ID.fullmatch(source):
        raise ConfigError(source, "a pipeline folder or a hub id (owner/name)", "neither")


def _load(
    source: str, failure: type[HalftoneError], expected: str, kwargs: dict[str, Any], fix: str = ""
) -> "DiffusionPipeline":
    from diffusers import DiffusionPipeline
    from diffusers.pipelines import pipeline_utils

    if "dtype" in kwargs and not hasattr(pipeline_utils, "_resolve_dtype"):
        kwargs["torch_dtype"] = kwargs.pop("dtype")  # the older name
    try:
        pipe = DiffusionPipeline.from_pretrained(source, **kwargs)
    except HalftoneError:
        raise
    except Exception as error:  # whatever diffusers, the hub client or a component's library raises
        missing = missing_files(Path(source))
        if missing:
            raise failure(source, "a whole pipeline folder", f"no {some(missing)}", AGAIN) from error
        if (index := Path(source) / INDEX).is_file():
            name_of_denoiser(read_json(index), str(index))  # diffusers would list every part that it misses
        lines = str(error).strip().splitlines() or [""]
        damaged = Path(source).is_dir() and isinstance(error, OSError | SafetensorError)
        got = f"{type(error).__name__}: {lines[0][:300]}"
        raise failure(source, expected, got, AGAIN if damaged else fix) from error
    refuse_unfit_controlnets(pipe)
    return pipe


def save_pipeline(
    pipe: "DiffusionPipeline",
    folder: str | Path,
    overwrite: bool = False,
    beside: Mapping[str, bytes | str] | None = None,
) -> Path:
    """Write ``pipe`` to ``folder``, wholly or not at all, and return the folder.

    As ``pipe.save_pretrained``, but without ``_name_or_path``, which is a path of the machine that loaded the model: so
    saving, loading and saving again gives the same bytes.

    Args:
        beside: contents of further files by their paths inside the folder, which appear together with it.

    Raises:
        OutputError: the folder exists and may not be overwritten, or lies inside another pipeline's; the disk is full, no
            permission, or the model is not in a state to be saved (see :func:`halftone.artifact.attach`).
    """
    check_place(folder, overwrite)
    with staged_folder(folder, overwrite) as stage:
        pipe.save_pretrained(stage)
        for file in (stage / INDEX, *stage.glob("*/*config.json")):
            _forget_origin(file)
        for name, content in (beside or {}).items():
            write_atomically(stage / name, content)
    return Path(folder)


def check_place(folder: str | Path, overwrite: bool = False) -> None:
    """Refuse a folder that :func:`save_pipeline` would refuse, for work to be refused before it begins.

    Raises:
        OutputError: ``folder`` exists and may not be overwritten, or lies inside another pipeline's folder.
    """
    check_output(folder, overwrite)
    around = next((parent for parent in Path(folder).resolve().parents if (parent / INDEX).is_file()), None)
    if around is not None:
        raise OutputError(str(folder), "a place of its own", f"one inside the pipeline {around}", "Choose another.")


def _forget_origin(file: Path) -> None:
    data = json.loads(file.read_bytes())
    if data.pop("_name_or_path", None) is not None:
        file.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
