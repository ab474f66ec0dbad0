"""What a recipe may do otherwise for a text-to-image model: each choice is measured with and without."""

from dataclasses import dataclass

from halftone.recipes import Recipe, load


@dataclass(frozen=True)
class Choice:
    """A change of a recipe.

    Attributes:
        word: for it in names of rows.
        given: as on the command line, ``path=value``.
        may_change_nothing: whether the first step may find nothing to do; then the model is the one without it.
    """

    word: str
    given: tuple[str, ...] = ()
    may_change_nothing: bool = False

    def made(self, recipe: str, budget: str, given: list[str]) -> Recipe:
        """Return the resolved recipe with the change."""
        return load(recipe, budget, [*given, *self.given])


NONE = Choice("")
CHOICES = {
    "token sinks in float": Choice("sinks", ("steps.sinks={method: transforms/token_sinks}",), may_change_nothing=True),
    "16-bit softmax": Choice("softmax16", ("policy.0.operands.probs.format=uint16",)),
    "calibrated on conditional rows": Choice("conditional", ("calibration.halves=conditional",)),
    "calibrated on unconditional rows": Choice("unconditional", ("calibration.halves=unconditional",)),
}
