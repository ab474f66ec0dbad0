"""The one contract of a method, and what a run hands to it."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file

from halftone.calibrate.store import Store
from halftone.calibrate.trajectory import Trajectory
from halftone.foundation.errors import ConfigError
from halftone.foundation.progress import Progress
from halftone.methods.effort import Effort, Job
from halftone.models.quant_model import QuantModel


@dataclass(frozen=True)
class StepReport:
    """What one step of a recipe did.

    Attributes:
        layers: facts by layer, unit or site path (numbers and short strings only).
        notes: sentences for the reader of the report.
    """

    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Run:
    """The circumstances of a quantization: seed, place for unfinished work, memory bound.

    Attributes:
        work: folder for memos and spilled activations; None keeps nothing and cannot resume.
        memory: bytes of activations a walk may hold in memory, None for no bound; the rest is spilled to ``work``.
        keep: dtype in which a walk keeps activations.
        device: where the model is, and what memos come back to.
        step: name of the recipe step that is running; part of every memo's and random stream's name.
    """

    seed: int = 0
    work: Path | None = None
    memory: int | None = None
    keep: torch.dtype = torch.float32
    progress: Progress = field(default_factory=lambda: Progress(enabled=False))
    step: str = ""
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable

    def __post_init__(self) -> None:
        if self.memory is not None and self.work is None:
            raise ConfigError("memory", "a folder `work` to spill activations to", "none", "Name one.")

    def memo(self, name: str, compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Return ``compute()``, or what it returned before this run was killed.

        Everything long goes through here: a resumed run takes finished results from the disk, bit by bit the same, and
        computes only the rest.
        """
        if self.work is None:
            return compute()
        key = hashlib.sha256(f"{self.step}/{name}".encode()).hexdigest()[:16]
        path = self.work / "memos" / f"{self.step.replace('/', '-')}-{key}.safetensors"
        if path.exists():
            self.progress.remembered()
            return load_file(path, device=str(self.device))
        path.parent.mkdir(parents=True, exist_ok=True)
        result = {k: v.detach().cpu().contiguous() for k, v in compute().items()}
        self.progress.computed()
        partial = path.with_suffix(".partial")
        save_file(result, partial, metadata={"memo": name})
        partial.replace(path)
        # Read back, so that an uninterrupted run goes on with exactly what a resumed one would.
        return load_file(path, device=str(self.device))

    def store(self) -> Store:
        """Return a fresh place for activations with this run's bounds."""
        return Store(self.memory, self.work / "spill" if self.work else None, self.keep)


# Words for what a method leaves behind that another one can build on.
WEIGHT_SCALES = "weight_scales"  # every planned layer holds codes and weight scales
INPUT_SCALES = "input_scales"  # every planned activation site has a scale


class AbstractMethod(ABC):
    """A frozen dataclass whose fields are the hyper-parameters.

    Class attributes:
        paper: where the mechanism is described.
        needs: what earlier steps of the recipe must have given. A need of ``input_scales`` is void where the policy quantizes no
            input.
        gives: what a recipe has after this step.
        before: what no earlier step may have given.

    The last three are words such as ``weight_scales`` and ``input_scales``, or of one's own where two methods of a package belong
    together. A recipe whose order contradicts them is refused before any work is done.
    """

    paper: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    gives: ClassVar[tuple[str, ...]] = ()
    before: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def apply(self, model: QuantModel, data: Trajectory, run: Run) -> StepReport:
        """Change ``model`` in place and say what was done."""

    def effort(self, job: Job) -> Effort | None:
        """Return what :meth:`apply` will take, for ``halftone inspect --plan``; None where nobody has counted it."""
        return None
