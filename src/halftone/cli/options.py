"""Options that several commands share, and the values they are read as."""

import re
from pathlib import Path
from typing import Annotated

import typer

from halftone.foundation.errors import ConfigError, suggest

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A diffusers folder, a hub id, or zoo:NAME.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
Seed = Annotated[int, typer.Option(help="Of every random choice; equal seeds give equal results.")]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps of the sampler.")]
Engine = Annotated[
    str | None,
    typer.Option(
        help="What to run on: simulate (the definition), torch (integer kernels), openvino (the whole denoiser as one graph), or "
        "auto, which measures; by default each layer takes its fastest kernel."
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        help="How layers keep their codes while they run: ready to be multiplied, or packed, in less memory and slower: 4-bit "
        "codes in half a byte; where weights alone are quantized, codes and no float weight.",
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="DTYPE",
        help="Of what stays float, and of what passes between layers: float32, bfloat16 (faster and smaller where the CPU has it) "
        "or float16.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is at the output.")]
Prompts = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        exists=True,
        dir_okay=False,
        readable=True,
        help="Text file with one prompt a line; to calibrate: the model's prompts.txt by default.",
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change the recipe: --set steps.reconstruct.iterations=200."),
]
Roles = Annotated[
    Path | None,
    typer.Option("--roles", exists=True, dir_okay=False, help="Role table (TOML) for an architecture without one."),
]

Negative = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="What guidance leads away from, for pipelines that take a prompt."),
]
Guidance = Annotated[
    float | None, typer.Option(min=0.0, help="Guidance scale; the pipeline's own by default, 1 turns it off.")
]
KeepAs = Annotated[
    str,
    typer.Option(
        metavar="DTYPE", help="How activations are held from block to block: float32, or bfloat16 in half the space."
    ),
]
_KEPT = ("float32", "bfloat16")
_DTYPES = ("float32", "bfloat16", "float16")

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?i?B)?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def byte_count(text: str) -> int:
    """Return the bytes that ``text`` stands for.

    >>> byte_count("2GB"), byte_count("1.5 MiB"), byte_count("4096")
    (2000000000, 1572864, 4096)

    Raises:
        ConfigError: it is no size, or zero.
    """
    found = _SIZE.fullmatch(text.strip())
    unit = (found.group(2) or "").lower().removesuffix("b") if found else ""
    count = int(float(found.group(1)) * (1024 if unit.endswith("i") else 1000) ** _POWERS[unit[:1]]) if found else 0
    if count < 1:
        raise ConfigError("--memory", "a size such as 2GB or 512MiB", f"'{text}'")
    return count


def check_dtype(dtype: str) -> str:
    """Return ``dtype``, or raise a ConfigError where models are not loaded in it."""
    if dtype not in _DTYPES:
        raise ConfigError("--dtype", ", ".join(_DTYPES), f"'{dtype}'", suggest(dtype, _DTYPES))
    return dtype


def check_kept(dtype: str) -> str:
    """Return ``dtype``, or raise a ConfigError where activations are not held so."""
    if dtype not in _KEPT:
        raise ConfigError("--keep-as", " or ".join(_KEPT), f"'{dtype}'", suggest(dtype, _KEPT))
    return dtype


def check_table(roles: Path | None) -> None:
    """Raise a ConfigError unless the role table, if any, is TOML."""
    import tomllib

    if roles is None:
        return
    try:
        tomllib.loads(roles.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--roles {roles}", "a TOML file", str(error)) from error
