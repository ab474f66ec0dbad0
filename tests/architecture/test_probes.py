"""Drafts of other methods' recipes: what they say does not load, for a word that they mark as new."""

import re
from pathlib import Path

import pytest

from halftone.foundation.errors import HalftoneError
from halftone.recipes import load

PROBES = sorted((Path(__file__).parents[2] / "docs/decisions/probes").glob("*.yaml"))


def test_there_are_probes() -> None:
    assert len(PROBES) > 10


@pytest.mark.parametrize("file", PROBES, ids=lambda file: file.stem)
def test_a_draft_stops_at_a_word_that_it_marks_as_new(file: Path) -> None:
    with pytest.raises(HalftoneError) as stopped:
        load(str(file))
    new = [line for line in file.read_text(encoding="utf-8").splitlines() if re.search(r"#.*\bnew\b", line)][1:]
    named = set(re.findall(r"\w{3,}", f"{stopped.value.where} {stopped.value.got}"))
    assert any(named & set(re.findall(r"\w{3,}", line.partition("#")[0])) for line in new), str(stopped.value)
