"""The study as data: every row of every section."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from benchmarks.cpu_unet.cases import Case, short
from benchmarks.cpu_unet.contenders import ANCHORS, BY_NAME, CONTENDERS, OURS, REFERENCE, TAKEN_APART, Contender
from benchmarks.cpu_unet.settings import Settings


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        contenders: one, or all that take turns in a latency row.
        case: None where the row is about ``model`` alone, and inputs of its own sampling.
    """

    section: str
    name: str
    model: str
    contenders: tuple[Contender, ...]
    case: Case | None = None


def rows(settings: Settings) -> list[Row]:
    """Return the rows of the sections asked for, in order."""
    makers = {"footprint": _footprint, "latency": _latency, "error": _error, "profile": _profile}
    makers |= {"levers": _levers, "distance": _distance}
    found = [row for section in settings.sections for row in makers[section](settings)]
    return [row for row in found if fnmatchcase(f"{row.section}/{row.name}", settings.pattern)]


def _asked(settings: Settings, section: str) -> list[Contender]:
    patterns = settings.contenders.split(",")
    some = [each for each in CONTENDERS if not each.only or section in each.only]
    return [each for each in some if any(fnmatchcase(each.name, pattern) for pattern in patterns)]


def _footprint(settings: Settings) -> Iterator[Row]:
    for case in settings.cases:
        for each in _asked(settings, "footprint"):
            yield Row("footprint", f"{case.name}-{each.name}", case.model, (each,), case)


def _latency(settings: Settings) -> Iterator[Row]:
    asked = _asked(settings, "latency")
    asked = [*(BY_NAME[name] for name in ANCHORS), *(each for each in asked if each.name not in ANCHORS)]
    for case in settings.cases:
        yield Row("latency", case.name, case.model, tuple(asked), case)


def _error(settings: Settings) -> Iterator[Row]:
    for model in settings.trained:
        for each in _asked(settings, "error"):
            if each.name != REFERENCE:
                yield Row("error", f"{short(model)}-{each.name}", model, (each,))


def _profile(settings: Settings) -> Iterator[Row]:
    for case in settings.cases:
        for each in _asked(settings, "profile"):
            if each.profiled:
                yield Row("profile", f"{case.name}-{each.name}", case.model, (each,), case)


def _levers(settings: Settings) -> Iterator[Row]:
    for case in settings.cases:
        for each in _asked(settings, "levers"):
            if each.name in TAKEN_APART:
                yield Row("levers", f"{case.name}-{each.name}", case.model, (each,), case)


def _distance(settings: Settings) -> Iterator[Row]:
    """Every engine of ours beside the definition: on trained models' own inputs, and on the smallest case."""
    asked = [each for each in _asked(settings, "distance") if each.road == OURS and not each.load.get("compiled")]
    for each in asked:
        for model in settings.trained:
            yield Row("distance", f"{short(model)}-{each.name}", model, (each,))
        for case in settings.cases[:1]:
            yield Row("distance", f"{case.name}-{each.name}", case.model, (each,), case)
