"""The spread over calibration seeds: of PSNR, of distance over the float model, of linear's error removed."""

from dataclasses import dataclass

import numpy as np

from benchmarks.q_diffusion.plan import HEADLINE, METHODS
from benchmarks.q_diffusion.results import Result, Section, comparable, over_seeds, pick, removed
from benchmarks.q_diffusion.tables import NAMES, table


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds, and how many there are."""

    mean: float
    deviation: float
    count: int


def _spread(values: list[float]) -> Spread | None:
    if len(values) < 2:
        return None
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)), len(values))


def rows_of(section: Section, method: str, bits: str) -> list[Result]:
    """Return a method's rows over the calibration seeds."""
    return [r for r in section.values() if r.labels.get("method") == method and r.labels.get("bits") == bits]


def psnr(section: Section, method: str, bits: str) -> Spread | None:
    """Return the spread of the PSNR, each on the same images: as many as every row keeps."""
    found = over_seeds(rows_of(section, method, bits))
    return Spread(*found) if found else None


def over_float(section: Section, method: str, bits: str) -> Spread | None:
    """Return the spread of the distance over the float model's, each beside the float row of as many samples."""
    floats = {
        row.protocol["samples"]: row.distribution["value"]
        for name in ("float", "float-few")
        if (row := section.get(name)) is not None and row.distribution
    }
    return _spread(
        [
            row.distribution["value"] / floats[row.protocol["samples"]] - 1
            for row in rows_of(section, method, bits)
            if row.distribution and row.protocol["samples"] in floats
        ]
    )


def of_linear_removed(section: Section, method: str, bits: str) -> Spread | None:
    """Return the spread of the share of linear's error removed, each beside linear with its own calibration seed.

    Linear that reads no calibration sample has one row for all seeds.
    """
    main, rivals = pick(section, method="rtn", bits=bits, seed="main"), rows_of(section, "rtn", bits)
    shares = []
    for row in rows_of(section, method, bits) if method != "rtn" else []:
        rival = next((each for each in rivals if each.seed == row.seed), main if len(rivals) == 1 else None)
        if rival is not None and comparable(row, rival):
            shares.append(removed(row, rival).value)
    return _spread(shares)


def spoken(spread: Spread | None, digits: int = 1, sign: str = "") -> str:
    """Return a spread of shares as the end of a sentence's evidence, nothing where there is none."""
    if spread is None:
        return ""
    return f" Over {spread.count} seeds: {spread.mean:{sign}.{digits}%} ± {spread.deviation:.{digits}%}."


def table_of(section: Section) -> list[str]:
    """Return the spread over calibration seeds, one line for each method and width that was repeated."""
    body = []
    for bits in HEADLINE:
        for method in METHODS:
            decibels = psnr(section, method, bits)
            if decibels is None:
                continue
            shares = [over_float(section, method, bits), of_linear_removed(section, method, bits)]
            cells = [f"{decibels.mean:.2f} ± {decibels.deviation:.2f}"]
            cells += [f"{each.mean:.1%} ± {each.deviation:.1%}" if each else "-" for each in shares]
            body.append([NAMES[method], bits.upper(), str(decibels.count), *cells])
    return (
        table(["model", "bits", "seeds", "PSNR, dB", "FD over float", "linear's error removed"], body) if body else []
    )
