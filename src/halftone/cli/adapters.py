"""LoRA adapters that the user names, loaded by diffusers and PEFT."""

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

from halftone.cli.models import resolve
from halftone.foundation.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_ENDING = ".safetensors"


def use_loras(pipe: "DiffusionPipeline", wanted: list[str]) -> None:
    """Load each adapter of ``wanted`` (``PATH`` or ``PATH=SCALE``, a path or ``zoo:NAME``) and let all of them act.

    Raises:
        ConfigError: no such file, or an adapter that was made for another model.
        MissingExtra: PEFT is not there.
    """
    if not wanted:
        return
    if importlib.util.find_spec("peft") is None:
        raise MissingExtra("--lora", "PEFT", "none", "pip install 'peft>=0.17'")
    scales = {}
    for number, text in enumerate(wanted):
        source, scales[f"lora{number}"] = parse_lora(text)
        _load(pipe, _file(source), f"lora{number}")
    pipe.set_adapters(list(scales), list(scales.values()))


def parse_lora(text: str) -> tuple[str, float]:
    """Return path and scale.

    >>> parse_lora("style.safetensors=0.5"), parse_lora("folder/a=b")
    (('style.safetensors', 0.5), ('folder/a=b', 1.0))
    """
    path, _, scale = text.rpartition("=")
    try:
        return (path, float(scale)) if path else (text, 1.0)
    except ValueError:
        return text, 1.0


def _file(source: str) -> Path:
    """Return the one file of tensors that ``source`` is, or holds."""
    path = Path(resolve(source, "lora"))
    files = sorted(path.glob(f"*{_ENDING}")) if path.is_dir() else [path]
    if len(files) != 1 or not files[0].is_file() or files[0].suffix != _ENDING:
        got = f"{len(files)} of them" if path.is_dir() else f"no {_ENDING} file" if path.exists() else "nothing there"
        hub = not path.exists() and path.suffix != _ENDING and re.fullmatch(r"\w[\w.-]*/[\w.-]+", source)
        fix = f"Ids of the hub are not taken: `hf download {source}` prints a folder." if hub else ""
        raise ConfigError(f"--lora {source}", f"a {_ENDING} file, or a folder with one", got, fix)
    return files[0]


def _load(pipe: "DiffusionPipeline", file: Path, name: str) -> None:
    where, wanted = f"--lora {file}", f"an adapter made for this {type(pipe).__name__}"
    fix = "It was trained for another model: take one whose card names this one, or its base."
    load = getattr(pipe, "load_lora_weights", None)
    if load is None:
        raise ConfigError(where, "a pipeline that takes adapters", type(pipe).__name__, "Leave it out.")
    from safetensors import SafetensorError

    try:
        load(file.parent, weight_name=file.name, adapter_name=name)
    except (SafetensorError, OSError) as error:
        raise ConfigError(where, "a whole safetensors file", str(error)[:300], "Fetch it again.") from error
    except Exception as error:  # whatever PEFT and diffusers make of tensors that have no place or another shape
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        got = f"{type(error).__name__}: {' '.join(lines[:2])[:300]}"
        raise ConfigError(where, wanted, got, fix) from error
    if not any(name in names for names in pipe.get_list_adapters().values()):
        raise ConfigError(where, wanted, "one with no tensor that belongs to a layer of it", fix)
