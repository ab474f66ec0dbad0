"""What a recipe may do otherwise for a text-to-image model: each choice is measured with and without."""

from dataclasses import dataclass, field, replace
from typing import Any

from halftone.recipes import Recipe, load


@dataclass(frozen=True)
class Choice:
    """A change of a recipe.

    Attributes:
        word: for it in names of rows.
        given: as on the command line, ``path=value``.
        first: steps before the recipe's own.
        may_change_nothing: whether the first step may find nothing to do; then the model is the one without it.
    """

    word: str
    given: tuple[str, ...] = ()
    first: dict[str, dict[str, Any]] = field(default_factory=dict)
    may_change_nothing: bool = False

    def made(self, recipe: str, budget: str, given: list[str]) -> Recipe:
        """Return the resolved recipe with the change."""
        found = load(recipe, budget, [*given, *self.given])
        return replace(found, steps={**self.first, **found.steps})


NONE = Choice("")
CHOICES = {
    "token sinks in float": Choice(
        "sinks", first={"sinks": {"method": "transforms/token_sinks"}}, may_change_nothing=True
    ),
    "16-bit softmax": Choice("softmax16", ("policy.0.operands.probs.format=uint16",)),
    "calibrated on conditional rows": Choice("conditional", ("calibration.halves=conditional",)),
    "calibrated on unconditional rows": Choice("unconditional", ("calibration.halves=unconditional",)),
}
