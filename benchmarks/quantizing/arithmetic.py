"""Count what block reconstruction computes, which bounds what it takes on machines that it was not timed on."""

from pathlib import Path
from typing import Any

from halftone.artifact import load_outline
from halftone.methods.effort import BACKWARD
from halftone.models.cost import count
from halftone.models.example_inputs import example_inputs
from halftone.models.roles import architecture
from halftone.recipes import load

_SCALE = 8  # pixels to a latent, of Stable Diffusion


def counted(recipe: str, model: Path, pixels: int) -> dict[str, Any]:
    """Return the multiply-accumulates of one iteration of every unit at the paper's batch, and how many iterations there are."""
    learned = load(recipe, "paper").steps["reconstruct"]
    module = load_outline(model).module
    args, kwargs = example_inputs(module, 1, size=pixels // _SCALE)
    forward = count(module, architecture(module), args, kwargs).forward.macs
    batch, iterations = learned["batch"], learned["iterations"]
    return {"macs": BACKWARD * batch * forward, "forward_macs": forward, "batch": batch, "iterations": iterations}
