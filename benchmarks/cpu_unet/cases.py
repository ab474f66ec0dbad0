"""What is called: which model, with pictures of which size, how many at a time."""

from dataclasses import dataclass

SD15 = "sd-1.5"


@dataclass(frozen=True)
class Case:
    """A model (``sd-1.5``, ``zoo:NAME`` or a pipeline's folder), the side of its pictures, and how many are drawn at a time."""

    model: str
    pixels: int
    batch: int

    @property
    def name(self) -> str:
        return f"{short(self.model)}-{self.pixels}-b{self.batch}"


def short(model: str) -> str:
    """Return a model's name in rows."""
    return model.removeprefix("zoo:").rstrip("/").rpartition("/")[2]


CASES = tuple(Case(SD15, pixels, batch) for batch in (1, 2) for pixels in (256, 512))
# Weights that were trained, which errors of the output mean something for.
TRAINED = ("zoo:fashion-unet", "zoo:emoji-sd")
