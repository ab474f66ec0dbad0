"""Inputs of a U-Net's calls as plain arrays, which every road can read without the libraries of another."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Inputs:
    """A sequence of calls.

    Attributes:
        sample: float32 ``[N, B, C, H, W]``.
        timestep: int64 ``[N]``, one for all rows of a call, as pipelines have it.
        text: float32 ``[N, B, tokens, width]``; ``[1, B, tokens, width]`` where one prompt serves all calls; None without one.
    """

    sample: np.ndarray
    timestep: np.ndarray
    text: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.sample)

    def __iter__(self) -> Iterator[tuple[np.ndarray, int, np.ndarray | None]]:
        once = self.text[0] if self.text is not None else None
        for number, (sample, timestep) in enumerate(zip(self.sample, self.timestep, strict=True)):
            several = self.text is not None and len(self.text) > 1
            yield sample, int(timestep), self.text[number] if several and self.text is not None else once

    @property
    def shapes(self) -> dict[str, list[int]]:
        """The shapes of one call's ``sample`` and ``text``."""
        found = {"sample": list(self.sample.shape[1:])}
        return found if self.text is None else {**found, "text": list(self.text.shape[1:])}

    def save(self, file: Path) -> None:
        """Write one ``.npz`` file."""
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial.npz")
        arrays = {"sample": self.sample, "timestep": self.timestep}
        np.savez(partial, **arrays, **({} if self.text is None else {"text": self.text}))  # type: ignore[arg-type]
        partial.replace(file)

    @classmethod
    def load(cls, file: Path) -> "Inputs":
        """Read a file of :meth:`save`."""
        with np.load(file) as stored:
            return cls(stored["sample"], stored["timestep"], stored.get("text"))
