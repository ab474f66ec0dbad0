"""A recipe: policy, calibration and steps, read strictly from YAML."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from halftone.calibrate.record import Halves
from halftone.calibrate.select_contract import AbstractSelect
from halftone.foundation.bounds import at_least
from halftone.foundation.build import UNSAID_BY_DEFAULT, assigned, build, override
from halftone.foundation.errors import ConfigError, suggest
from halftone.foundation.registry import make
from halftone.methods.contract import AbstractMethod
from halftone.models.policy import Rule
from halftone.recipes.order import check_order
from halftone.recipes.rooms import method_class

BUDGETS = ("demo", "fast", "paper")
_LIBRARY = "halftone.recipes.library"
_INHERITANCE = ("extends", "drop", "set")
# Parameters of a denoiser above which a budget is another one. Of the zoo's there is none, Stable Diffusion 1.5 has 860 million.
LARGE = 200_000_000


@dataclass(frozen=True)
class Calibration:
    """Where the calibration samples come from.

    Attributes:
        select: a strategy of ``calibrate/select`` by name, or a mapping with its ``name`` and fields.
        samples: denoiser inputs in all.
        batch: trajectories drawn at a time.
        influence: images on which the influence of each call on the image is measured, by which methods that learn weigh their
            errors; 0 weighs all calls alike.
        halves: of guided calls, which rows to take: ``both``, ``conditional`` or ``unconditional``.
        arguments: further arguments of the pipeline (``eta``, ``guidance_scale``).
    """

    select: str | dict[str, Any] = "uniform"
    samples: int = 1024
    batch: int = 32
    influence: int = field(default=0, metadata=UNSAID_BY_DEFAULT)
    halves: Halves = field(default="both", metadata=UNSAID_BY_DEFAULT)
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at_least(self, 1, "samples", "batch")
        at_least(self, 0, "influence")
        self.selection()

    def selection(self) -> AbstractSelect:
        """Return the strategy, built.

        Raises:
            ConfigError: at ``select``, no such strategy, or a field it does not have.
        """
        made: AbstractSelect = make("halftone.calibrate.select", self.select, "select")
        return made


@dataclass(frozen=True)
class Expectation:
    """What a recipe reached where it was measured: what to expect, and a way to notice that something is wrong.

    Attributes:
        model: a zoo model or a hub id.
        budget, steps: of the quantization; the same steps of the same sampler drew the images.
        psnr: dB to the float model's images, of the error pooled over them.
        distance: the Fréchet distance, as a share above the float model's.
    """

    model: str
    budget: str
    steps: int
    psnr: float
    distance: float

    def __post_init__(self) -> None:
        at_least(self, 1, "steps")


@dataclass(frozen=True)
class Enlarged:
    """How a budget differs for a denoiser of more than ``LARGE`` parameters: names of steps that it does without, and values by
    dotted path. In a YAML file at ``large``, by budget; it is carried out when a recipe is loaded for such a denoiser."""

    drop: tuple[str, ...] = ()
    set: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe.

    Attributes:
        expects: what it reached where it was measured; a recipe that extends another has none but its own.
        steps: by step name, in order, each a mapping of ``method`` (``room/name``) and the method's fields.
        budgets: for ``demo`` and ``fast``, overrides of the paper's settings by dotted path.
    """

    name: str
    title: str
    paper: str
    policy: tuple[Rule, ...]
    steps: dict[str, dict[str, Any]]
    calibration: Calibration = field(default_factory=Calibration)
    budgets: dict[str, dict[str, Any]] = field(default_factory=dict)
    expects: Expectation | None = field(default=None, metadata=UNSAID_BY_DEFAULT)

    def methods(self) -> dict[str, AbstractMethod]:
        """Return the steps' methods, built, by step name.

        Raises:
            ConfigError: an unknown method or field, or steps in an order that cannot work.
        """
        made = {name: _method(name, dict(step)) for name, step in self.steps.items()}
        if not made:
            raise ConfigError(f"recipe {self.name}: steps", "at least one", "none")
        check_order(f"recipe {self.name}: steps", self.policy, made)
        return made


def _method(name: str, step: dict[str, Any]) -> AbstractMethod:
    where = f"steps.{name}"
    described = step.pop("method", None)
    if not isinstance(described, str) or described.count("/") != 1:
        raise ConfigError(f"{where}.method", "room/name, such as rounding/nearest", repr(described))
    return build(method_class(described, f"{where}.method"), step, where)


def names() -> list[str]:
    """Return the names of the recipes that come with Halftone."""
    files = resources.files(_LIBRARY).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load(
    source: str,
    budget: str = "paper",
    overrides: list[str] | None = None,
    parameters: int = 0,
) -> Recipe:
    """Return the recipe called ``source``, or in the file ``source``, at a budget, with ``path=value`` overrides.

    Args:
        parameters: of the denoiser; what the recipe says of large ones holds from ``LARGE`` on.

    Raises:
        ConfigError: unknown recipe, key or budget (with a suggestion), or a recipe that contradicts itself.
    """
    if budget not in BUDGETS:
        raise ConfigError("budget", "one of " + ", ".join(BUDGETS), budget, suggest(budget, BUDGETS))
    data = _resolve(source, ())
    large = _large(data)
    data = assigned(data, (data.get("budgets") or {}).get(budget, {}))
    if parameters > LARGE:
        data = _enlarged(data, large.get(budget, Enlarged()), f"large.{budget}")
    if overrides:
        data = _in_place(override(data, overrides, new_keys=True), data)
    recipe = build(Recipe, data, f"recipe {data.get('name', source)}")
    _check_budgets(recipe.name, "budgets", recipe.budgets)
    recipe.methods()
    return recipe


def _check_budgets(name: str, key: str, found: Iterable[str]) -> None:
    unknown = set(found) - set(BUDGETS)
    if unknown:
        raise ConfigError(f"recipe {name}: {key}", "demo, fast or paper", ", ".join(sorted(unknown)))


def _large(data: dict[str, Any]) -> dict[str, Enlarged]:
    """Take out of a recipe's plain data what it says of large denoisers, and return it by budget."""
    name, found = str(data.get("name")), data.pop("large", None) or {}
    if not isinstance(found, dict):
        raise ConfigError(f"recipe {name}: large", "a mapping by budget", type(found).__name__)
    _check_budgets(name, "large", found)
    return {budget: build(Enlarged, how, f"recipe {name}: large.{budget}") for budget, how in found.items()}


def _enlarged(data: dict[str, Any], how: Enlarged, where: str) -> dict[str, Any]:
    """Return a recipe's plain data as it is for a large denoiser."""
    for step in how.drop:
        if step not in data["steps"]:
            where = f"recipe {data.get('name')}: {where}.drop"
            raise ConfigError(where, "a step of the recipe", step, suggest(step, data["steps"]))
    steps = {name: step for name, step in data["steps"].items() if name not in how.drop}
    title = data.get("title")
    if isinstance(title, str) and how.drop:  # whoever reads the model's card must not take it for the whole method
        data = {**data, "title": f"{title}, as a large denoiser has it: without {', '.join(how.drop)}"}
    return dict(assigned({**data, "steps": steps}, how.set))


def _in_place(data: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's plain data with steps that ``old`` does not have before those that give what they must precede."""
    steps, before = data.get("steps"), old.get("steps")
    if (
        not isinstance(steps, dict)
        or not isinstance(before, dict)
        or not all(isinstance(s, dict) for s in steps.values())
    ):
        return data  # building it tells what is wrong
    methods = {name: _method(name, dict(step)) for name, step in steps.items() if name not in before}
    if not any(method.before for method in methods.values()):
        return data
    order = list(steps)
    given = {name: _method(name, dict(step)).gives for name, step in steps.items()}
    for name, method in methods.items():
        order.remove(name)
        later = (place for place, other in enumerate(order) if set(given[other]) & set(method.before))
        order.insert(next(later, len(order)), name)
    return {**data, "steps": {name: steps[name] for name in order}}


def _resolve(source: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """Return the recipe's plain data with ``extends``, ``drop`` and ``set`` carried out."""
    if source in seen:
        raise ConfigError(f"recipe {source}", "no circle in extends", " -> ".join((*seen, source)))
    data = _read(source)
    inheritance = {key: data.pop(key) for key in _INHERITANCE if key in data}
    if "extends" not in inheritance:
        if inheritance:
            raise ConfigError(f"recipe {source}", "extends beside drop and set", ", ".join(inheritance))
        return data
    merged = copy.deepcopy(_resolve(str(inheritance["extends"]), (*seen, source)))
    merged.pop("expects", None)
    for step in inheritance.get("drop", []):
        if step not in merged["steps"]:
            fix = suggest(str(step), merged["steps"])
            raise ConfigError(f"recipe {source}: drop", "a step of the extended recipe", str(step), fix)
        del merged["steps"][step]
        _forget(merged, str(step))
    merged = _in_place(assigned(merged, inheritance.get("set") or {}), merged)
    return {**merged, **data}


def _forget(data: dict[str, Any], step: str) -> None:
    """Take out of budgets and of what holds for large models what they say about a step that is gone."""
    large = list((data.get("large") or {}).values())
    for how in large:
        how["drop"] = [each for each in how.get("drop", []) if each != step]
    for changes in (*(data.get("budgets") or {}).values(), *(how.get("set", {}) for how in large)):
        for path in [path for path in changes if path.startswith(f"steps.{step}.")]:
            del changes[path]


def _read(source: str) -> dict[str, Any]:
    if source.endswith((".yaml", ".yml")) or "/" in source:
        path = Path(source)
        if not path.is_file():
            fix = suggest(path.stem, names()).replace("Known:", "Recipes that come with Halftone:")
            raise ConfigError(f"recipe file {source}", "a readable YAML file", "nothing there", fix)
        text = path.read_text(encoding="utf-8", errors="replace")
    elif source in names():
        text = resources.files(_LIBRARY).joinpath(f"{source}.yaml").read_text()
    else:
        raise ConfigError("recipe", "a known recipe or a .yaml file", source, suggest(source, names()))
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {source}", "valid YAML", str(error).replace("\n", " ")) from error
    if not isinstance(data, dict):
        raise ConfigError(f"recipe {source}", "a mapping", type(data).__name__)
    return data
