"""What pages say about the rows' recipes comes from the recipes in the rows."""

from typing import Any

from benchmarks.q_diffusion.plan import Row
from benchmarks.q_diffusion.recipes_of_rows import edges_sentence, stale
from benchmarks.q_diffusion.record import recipe_of
from benchmarks.q_diffusion.results import Result
from benchmarks.records import recipe_digest

from halftone.foundation.build import plain


def _row(recipe: str, *overrides: str) -> Result:
    resolved = recipe_of(Row("headline", recipe, "quality", "fast", 1, recipe, overrides))
    described: dict[str, Any] = {"name": recipe, "overrides": list(overrides), "sha256": recipe_digest(resolved)}
    described["resolved"] = {"policy": plain(resolved)["policy"]}
    return Result({"row": recipe, "recipe": described, "budget": "fast"})


def test_the_sentence_about_the_edges_is_said_only_where_true_of_all() -> None:
    wide = [_row(name) for name in ("q-diffusion-w4a8", "q-diffusion-w4a32", "rtn-w8a8")]
    float_row = Result({"row": "float", "recipe": None, "budget": None})
    said = edges_sentence([float_row, *wide])
    assert "8-bit weights and, where activations are quantized, 16-bit inputs." in said
    assert edges_sentence([wide[1]]).endswith("8-bit weights.")
    assert edges_sentence([*wide, _row("q-diffusion-w4a8-no-edges")]) == ""
    assert edges_sentence([float_row]) == ""
    narrow = _row("rtn-w8a8", "policy.1.input={format: uint8}")
    assert edges_sentence([*wide[:2], narrow]).endswith("8-bit weights.")


def test_a_row_of_a_changed_recipe_is_named() -> None:
    today, changed, gone = _row("q-diffusion-w4a8"), _row("rtn-w8a8"), _row("rtn-w4a8")
    changed.data["recipe"]["sha256"] = "0" * 16
    gone.data["recipe"]["name"] = "no-such-recipe"
    rows = {"a": today, "b": changed, "c": gone, "d": Result({"row": "float", "recipe": None})}
    assert stale({"headline": rows}) == ["headline/rtn-w8a8", "headline/rtn-w4a8"]
