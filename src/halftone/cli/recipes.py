"""``halftone recipes``: the named methods."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from halftone.cli.options import Assignments, Json
from halftone.cli.output import emit, table, working

if TYPE_CHECKING:
    from halftone.recipes import Recipe

app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


@app.callback()
def listing(context: typer.Context, json: Json = False) -> None:
    """List the recipes; `show NAME` prints one.

    \b
    Examples:
      halftone recipes
      halftone recipes show q-diffusion-w4a8 --budget demo
    """
    if context.invoked_subcommand is not None:
        return
    with working():
        from halftone.recipes import load, names

        found = [
            {"name": name, "title": recipe.title, "paper": recipe.paper} for name in names() for recipe in [load(name)]
        ]
    rows = [list(each.values()) for each in found]
    emit({"recipes": found}, json, lambda: table(["name", "title", "paper"], rows))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A recipe's name, or a .yaml file.")],
    budget: Annotated[str, typer.Option(help="demo, fast or paper.")] = "fast",
    assignments: Assignments = None,
    json: Json = False,
) -> None:
    """Print a recipe as it would run; the output is itself a recipe file.

    \b
    Examples:
      halftone recipes show q-diffusion-w4a8
      halftone recipes show q-diffusion-w4a8 --budget paper --set steps.reconstruct.iterations=100 > mine.yaml
    """
    with working():
        from halftone.recipes import load

        shown, text = resolved(load(name, budget, assignments or []))
    emit(shown, json, lambda: f"# {name} at budget {budget}\n{text}")


def resolved(recipe: "Recipe") -> tuple[dict[str, Any], str]:
    """Return the recipe as plain data and as YAML, without what says nothing: both are recipes themselves."""
    import yaml

    from halftone.foundation.build import plain

    # The budget is applied already, and would otherwise be applied again to a file made of this.
    shown = _without_defaults({key: value for key, value in plain(recipe).items() if key != "budgets"})
    # A step is a line.
    return shown, yaml.safe_dump(
        shown, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None
    ).rstrip()


def _without_defaults(value: Any) -> Any:
    """Return ``value`` without keys that say nothing: null stands for "as earlier rules said" and the like."""
    if isinstance(value, dict):
        return {key: _without_defaults(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [_without_defaults(entry) for entry in value]
    return value
