"""Roles are a vocabulary that recipes are written in: every one that a table uses is in the documentation."""

import re
from pathlib import Path

import pytest

from halftone.models.roles import table_of

ROOT = Path(__file__).parents[2]
TABLES = sorted(file.stem for file in (ROOT / "src/halftone/models/tables").glob("*.toml"))
DOCUMENT = (ROOT / "docs/adding-an-architecture.md").read_text(encoding="utf-8")
_, _, AFTER = DOCUMENT.partition("**Roles in use.**")
KNOWN = set(re.findall(r"`([a-z_0-9.]+)`", AFTER.partition("**What has no role.**")[0]))


@pytest.mark.parametrize("table", TABLES)
def test_every_role_of_a_table_is_documented(table: str) -> None:
    found = table_of(table)
    assert found is not None
    assert set(found[0].values()) <= KNOWN


def test_the_documented_attentions_come_in_two_kinds() -> None:
    parts = {"q", "k", "v", "out"}
    wanted = {f"attention.{kind}.{part}" for kind in ("self", "cross") for part in parts}
    assert {role for role in KNOWN if re.fullmatch(r"attention\.\w+\.\w+", role)} == wanted
