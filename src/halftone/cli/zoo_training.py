"""What all trainings of ``halftone zoo train`` share: the request, and the way from a trained pipeline to its folder."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halftone.foundation.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn

    from halftone.zoo.catalog import Entry


BASE = "zoo:emoji-sd"


@dataclass(frozen=True)
class Request:
    """What a training was asked for.

    Attributes:
        entry: the model.
        data: its data set.
        output: the folder to write.
        work: the folder of checkpoints.
        base: the model that an adapter or a ControlNet is trained for.
        options: numbers that only some trainings take, by name, such as ``minutes``; what was not given is not there.
    """

    entry: "Entry"
    data: Path
    output: Path
    work: Path
    seed: int
    overwrite: bool
    options: Mapping[str, int | float]
    base: str = BASE

    @property
    def device(self) -> str:
        """Where to train."""
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def command(self) -> str:
        """The line that does it again, with a placeholder for the data."""
        # Not `:g` for all: it writes a large integer as 1e+06, which no integer option reads.
        given = [f"--{k} {v:g}" if isinstance(v, float) else f"--{k} {v}" for k, v in self.options.items()]
        given += [f"--base {Path(self.base).name}"] if self.base != BASE else []
        line = ["halftone zoo train", self.entry.name, "--data", self.entry.source, *given, f"--seed {self.seed}"]
        return " ".join(line)


def check_options(entry: "Entry", given: Iterable[str]) -> None:
    """Refuse options that would be ignored.

    Raises:
        ConfigError: the model's training does not have one of the options called ``given``.
    """
    for name in given:
        if name not in entry.options:
            known = ["data", "seed", "output", *entry.options]
            raise ConfigError(f"--{name}", "one of " + ", ".join(f"--{each}" for each in known), f"'{entry.name}'")


@dataclass(frozen=True)
class Described:
    """A trained pipeline measured: its card, the card for readers, samples as PNG, and further files by path."""

    card: dict[str, Any]
    readme: str
    picture: bytes
    beside: dict[str, bytes | str] = field(default_factory=dict)


def finish(
    pipe: "DiffusionPipeline", parts: Sequence["nn.Module"], describe: Callable[[], Described], request: Request
) -> dict[str, Any]:
    """Halve the weights of ``parts``, measure with ``describe``, write the folder, and return the card.

    Raises:
        OutputError: see ``save_pipeline``.
    """
    import json

    import torch

    from halftone.artifact import save_pipeline

    for part in parts:
        # Half precision is what ships, so it is what the card measures.
        _cast(part, torch.float16)
        _cast(part, torch.float32)
    pipe.to(request.device)
    found = describe()
    for part in parts:
        _cast(part, torch.float16)
    beside: dict[str, bytes | str] = {
        "card.json": json.dumps(found.card, indent=1) + "\n",
        "README.md": found.readme,
        "samples.png": found.picture,
        **found.beside,
    }
    save_pipeline(pipe, request.output, request.overwrite, beside)
    return found.card


def png(images: "np.ndarray", labels: list[str] | None = None) -> bytes:
    """Return ``images`` ``[N, C, H, W]`` in [0, 1] as one PNG; see ``grid``."""
    import io

    from halftone.cli.generate import grid

    buffer = io.BytesIO()
    grid(images, labels).save(buffer, format="PNG")
    return buffer.getvalue()


def machine_line(machine: Mapping[str, Any]) -> str:
    """Return the facts of a machine for readers."""
    cuda = f"{machine['cuda']}, " if machine["cuda"] else ""
    return f"{cuda}{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}"


def _cast(module: "nn.Module", dtype: "torch.dtype") -> None:
    """Change the type of all parameters in place."""
    # diffusers warns about `to(dtype)`, for models that must not be cast as a whole; this one may be.
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
