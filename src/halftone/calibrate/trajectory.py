"""Recorded denoiser calls: the calibration data."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils import _pytree as pytree

from halftone.foundation.errors import CalibrationError


@dataclass(frozen=True)
class Trajectory:
    """Samples of the inputs that a sampler gives to a denoiser, taken from many calls.

    Attributes:
        args, kwargs: the call's trees. A leaf with samples is ``[N, ...]`` (timesteps too); other leaves are constants, the same
            in every call, such as Flux's ``img_ids`` ``[tokens, 3]``.
        calls: int64 ``[N]``, the index of the call (0 = noisiest) that each sample comes from.
        identity: what the samples depend on (sampler, steps, guidance, seed ...); stored in the artifact.
        batched: for each leaf of ``(args, kwargs)`` whether it has samples; empty, every tensor has.
        influence: float32 ``[calls]``, how much an error of each call shows in the image, their mean 1
            (:mod:`halftone.calibrate.influence`); None where it was not measured.
    """

    args: tuple
    kwargs: dict
    calls: torch.Tensor
    identity: dict[str, Any]
    batched: tuple[bool, ...] = ()
    influence: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if not self.batched:
            leaves = pytree.tree_leaves((self.args, self.kwargs))
            object.__setattr__(self, "batched", tuple(isinstance(leaf, torch.Tensor) for leaf in leaves))

    def __len__(self) -> int:
        return len(self.calls)

    @property
    def weights(self) -> torch.Tensor | None:
        """Float32 ``[N]``: what each sample's error counts, by the influence of its call; None where all count the same."""
        return None if self.influence is None else self.influence[self.calls]

    def rows(self, index: torch.Tensor | slice) -> tuple[tuple, dict]:
        """Return the call ``(args, kwargs)`` for the samples at ``index``."""
        leaves, spec = pytree.tree_flatten((self.args, self.kwargs))
        cut = [leaf[index] if has else leaf for leaf, has in zip(leaves, self.batched, strict=True)]
        return pytree.tree_unflatten(cut, spec)

    def to(self, device: torch.device | str) -> "Trajectory":
        """Return the samples on ``device``; ``calls`` and ``influence``, which only say what the samples are, stay."""
        moved = pytree.tree_map_only(torch.Tensor, lambda leaf: leaf.to(device), (self.args, self.kwargs))
        return replace(self, args=moved[0], kwargs=moved[1])

    def batches(self, size: int, generator: torch.Generator | None = None) -> list[torch.Tensor]:
        """Return index tensors of exactly ``size`` samples each; shuffled when a generator is given.

        A remainder is filled up with samples from the beginning, so that nothing is dropped.

        Raises:
            CalibrationError: fewer samples than one batch.
        """
        if len(self) < size:
            raise CalibrationError("calibration", f"at least one batch of {size} samples", f"{len(self)} samples")
        order = torch.randperm(len(self), generator=generator) if generator else torch.arange(len(self))
        order = torch.cat([order, order[: -len(self) % size]])
        return list(order.split(size))

    def save(self, path: Path) -> None:
        """Write the trajectory to one safetensors file, atomically."""
        leaves, spec = pytree.tree_flatten((self.args, self.kwargs))
        tensors = {f"leaf.{i}": leaf.contiguous() for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)}
        constants = {i: leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, torch.Tensor)}
        described = {
            "tree": pytree.treespec_dumps(spec),
            "constants": constants,
            "identity": self.identity,
            "batched": self.batched,
        }
        if self.influence is not None:
            tensors["influence"] = self.influence
        partial = path.with_suffix(".partial")
        save_file({**tensors, "calls": self.calls}, partial, metadata={"trajectory": json.dumps(described)})
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Trajectory":
        """Read what :meth:`save` wrote."""
        with safe_open(path, framework="pt") as file:
            described = json.loads(file.metadata()["trajectory"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        calls, influence = tensors.pop("calls"), tensors.pop("influence", None)
        found = {int(i): leaf for i, leaf in described["constants"].items()}
        found |= {int(name.removeprefix("leaf.")): tensor for name, tensor in tensors.items()}
        spec = pytree.treespec_loads(described["tree"])
        args, kwargs = pytree.tree_unflatten([found[i] for i in range(len(found))], spec)
        return cls(args, kwargs, calls, described["identity"], tuple(described.get("batched", ())), influence)

    def check(self) -> None:
        """Raise a CalibrationError when an input is NaN or infinite, or the noisy image the same in every sample and element.

        Other inputs may be constant: SDXL's empty prompt is all zeros, and so is what a new ControlNet adds.
        """
        image: Any = self.kwargs.get("sample", self.kwargs.get("hidden_states", self.args[0] if self.args else None))
        for leaf, has in zip(pytree.tree_leaves((self.args, self.kwargs)), self.batched, strict=True):
            if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
                continue
            if not torch.isfinite(leaf).all():
                fix = "The float model diverges under this sampler; try more steps or another scheduler."
                raise CalibrationError("calibration", "finite inputs", "NaN or infinity", fix)
            if has and leaf is image and leaf.ndim > 1 and leaf.numel() > 1 and bool((leaf == leaf.flatten()[0]).all()):
                raise CalibrationError("calibration", "noisy images that vary", f"the constant {leaf.flatten()[0]:g}")
