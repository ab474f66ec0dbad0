"""What a pipeline is called with, beside its noise: told apart by digests, and taken in turn from lists."""

import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from halftone.foundation.errors import ConfigError
from halftone.foundation.prompt_file import read_prompts
from halftone.foundation.seeds import generator

PROMPTS = "prompts.txt"


def prompts_of(pipe: Any) -> tuple[list[str], bool]:
    """Return what to calibrate ``pipe`` on where nobody names prompts, and whether the model brought them.

    They are the lines of ``prompts.txt`` in the folder that the pipeline came from, or a hundred short descriptions of many kinds
    of pictures.

    Raises:
        ConfigError: that file is empty, or not text.
    """
    name = getattr(pipe.config, "_name_or_path", None)
    file = Path(str(name)) / PROMPTS
    if not name or not file.is_file():
        ours = resources.files("halftone.calibrate").joinpath(PROMPTS).read_text(encoding="utf-8")
        return ours.splitlines(), False
    return read_prompts(file, option=""), True


def digest(value: Any) -> str:
    """Return a digest of the contents of arguments: of pictures and tensors their numbers, of all else what Python prints."""
    found = hashlib.sha256()
    _feed(found, value)
    return found.hexdigest()


def digests(each: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """Return a digest of the values of each argument of which every trajectory has its own: prompts, labels, images."""
    found = {}
    for name, values in each.items():
        both = hashlib.sha256()
        for value in values:
            both.update(value.encode() if isinstance(value, str) else np.asarray(_on_cpu(value)).tobytes())
            both.update(b"\0")
        found[name] = f"{len(values)} values, {both.hexdigest()[:12]}"
    return found


def check_each(each: Mapping[str, Sequence[Any]] | None) -> None:
    """Raise a ConfigError for an argument whose values are no list, or an empty one: of a string, each letter would be a prompt."""
    for name, values in (each or {}).items():
        if isinstance(values, str | bytes) or not hasattr(values, "__getitem__") or not len(values):
            got = (
                repr(values) if isinstance(values, str | bytes) or hasattr(values, "__len__") else type(values).__name__
            )
            fix = f"each={{'{name}': [...]}}"
            raise ConfigError(f"each: {name}", "a list of values, one a trajectory", got[:80], fix)


def in_turn(each: Mapping[str, Sequence[Any]] | None, count: int, seed: int) -> dict[str, list[Any]]:
    """Return ``count`` values of each argument, in an order that ``seed`` decides, from the start again when they run out.

    Few trajectories see a small part of a long list, and the head of a list is often of one kind. Lists of one length keep their
    values together.

    Raises:
        ConfigError: the values of an argument are no list.
    """
    check_each(each)
    found = {}
    for name, values in (each or {}).items():
        order = torch.randperm(len(values), generator=generator(seed, "calibration", "conditions", str(len(values))))
        found[name] = [values[int(order[i % len(values)])] for i in range(count)]
    return found


def _on_cpu(value: Any) -> Any:
    """Return a tensor as an array, anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().cpu()
    return value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()


def _feed(found: "hashlib._Hash", value: Any) -> None:
    # A picture's repr has its address in it, and a large array's leaves most of the numbers out.
    if isinstance(value, Mapping):
        value = sorted(value.items())
    if isinstance(value, Image.Image):
        value = np.asarray(value)
    value = _on_cpu(value)
    if isinstance(value, np.ndarray):
        found.update(f"{value.dtype} {value.shape} ".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, list | tuple):
        found.update(f"{len(value)} [".encode())
        for each in value:
            _feed(found, each)
    else:
        found.update(f"{value!r}\0".encode())
