"""The study as data: every row of every section, in the order in which they are worth having."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from benchmarks.text_to_image.choices import CHOICES
from benchmarks.text_to_image.settings import Settings
from benchmarks.text_to_image.uses import PLAIN, USES

METHODS = {"linear": "rtn", "Q-Diffusion": "q-diffusion"}
BITS = ("w8a8", "w4a32", "w4a8")
USED = ("w8a8", "w4a8")
_CHOSEN = "w4a8"
_CHEAP = {"linear": "rtn", "GPTQ": "gptq"}
FLOAT = "float"


@dataclass(frozen=True)
class Row:
    """One row: a model, and how it is used.

    Attributes:
        method, bits: as tables call them; both ``float`` for the float model.
        recipe: None for the float model.
        choice: of ``CHOICES``, what the recipe does otherwise.
    """

    section: str
    name: str
    method: str
    bits: str
    use: str = PLAIN
    recipe: str | None = None
    choice: str = ""


def rows(settings: Settings) -> list[Row]:
    """Return the rows of the sections asked for, in order."""
    makers = {"quality": _quality, "uses": _uses, "choices": _choices, "latency": _latency}
    found = [row for section in settings.sections for row in makers[section](settings)]
    assert len({(row.section, row.name) for row in found}) == len(found)
    return [row for row in found if fnmatchcase(f"{row.section}/{row.name}", settings.pattern)]


def _quality(settings: Settings) -> Iterator[Row]:
    yield Row("quality", FLOAT, FLOAT, FLOAT)
    for bits, (method, recipe) in itertools.product(BITS, METHODS.items()):
        yield Row("quality", f"{recipe}-{bits}", method, bits, recipe=f"{recipe}-{bits}")


def _uses(settings: Settings) -> Iterator[Row]:
    """Every use, of the float model first: a use may be hard for any model."""
    for name, use in USES.items():
        if name == PLAIN or not use.available(settings):
            continue
        word = name.lower().replace(",", "").replace("++", "").replace(" ", "-")
        if not use.like:
            yield Row("uses", f"{word}-float", FLOAT, FLOAT, name)
        for bits in USED:
            yield Row("uses", f"{word}-{bits}", "Q-Diffusion", bits, name, f"q-diffusion-{bits}")


def _choices(settings: Settings) -> Iterator[Row]:
    """Every choice at the most demanding bits, linear first, beside the same recipe without: by methods that take minutes."""
    for method, recipe in _CHEAP.items():
        yield Row("choices", f"{recipe}-{_CHOSEN}", method, _CHOSEN, recipe=f"{recipe}-{_CHOSEN}")
        for name, choice in CHOICES.items():
            row = f"{recipe}-{_CHOSEN}-{choice.word}"
            yield Row("choices", row, method, _CHOSEN, recipe=f"{recipe}-{_CHOSEN}", choice=name)


def timed(row: Row) -> list[Row]:
    """Return the rows whose models stand beside each other in the row of times."""
    made = ((bits, *method) for bits, method in itertools.product(BITS, METHODS.items()))
    return [replace(row, method=name, bits=bits, recipe=f"{recipe}-{bits}") for bits, name, recipe in made]


def _latency(settings: Settings) -> Iterator[Row]:
    yield Row("latency", "latency", "Q-Diffusion", "w4a8", recipe="q-diffusion-w4a8")
