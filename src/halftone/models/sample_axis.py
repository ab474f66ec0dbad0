"""Which tensors of a call have samples: of two recordings with different numbers of samples, those whose first axis follows."""

from dataclasses import dataclass

from halftone.foundation.errors import CalibrationError
from halftone.models.tape import Tape


@dataclass(frozen=True)
class SampleAxis:
    """Slots of a tape whose first axis is that of the samples, and those that follow their number in some other way.

    What is in neither is the same for any number of samples. Lengths alone do not tell: a sequence may happen to be as long as the
    batch.
    """

    samples: frozenset[int]
    others: frozenset[int]

    def of(self, slot: int) -> bool | None:
        """Return whether the slot has samples along its first axis; None when they are elsewhere, or several rows each."""
        return None if slot in self.others else slot in self.samples


def sample_axis(tape: Tape, count: int, again: Tape, other: int) -> SampleAxis:
    """Return where the samples are on ``tape``, recorded with ``count`` samples; ``again`` is the same call with ``other``.

    Raises:
        CalibrationError: the forward does other things for another number of samples.
    """
    targets = [entry.target for entry in tape.entries]
    if len(tape.shapes) != len(again.shapes) or targets != [entry.target for entry in again.entries]:
        expected = "a denoiser that does the same for any number of samples"
        raise CalibrationError("walk", expected, f"other operations for {other} samples than for {count}")
    moved = {slot for slot, shapes in enumerate(zip(tape.shapes, again.shapes, strict=True)) if shapes[0] != shapes[1]}
    samples = {
        slot
        for slot in moved
        if tape.shapes[slot] == (count, *tape.shapes[slot][1:])
        and again.shapes[slot] == (other, *tape.shapes[slot][1:])
    }
    return SampleAxis(frozenset(samples), frozenset(moved - samples))
