"""Every recipe of the library, at every budget: it loads, builds, is plain data again, and runs. The folder is listed."""

import json
from collections.abc import Callable

import pytest
import torch
import yaml
from diffusers import DDIMPipeline
from tests.comparison import sqnr

from halftone.calibrate.select_contract import AbstractSelect
from halftone.foundation.build import build, plain
from halftone.foundation.registry import make
from halftone.methods.contract import AbstractMethod, Run
from halftone.methods.reconstruct.ada_round import AdaRound
from halftone.methods.reconstruct.learned_steps import LearnedSteps
from halftone.models.policy import scheme_of
from halftone.nn import QuantizedLayer
from halftone.nn.sites import sites
from halftone.recipes import BUDGETS, Recipe, load, names, run_recipe
from halftone.recipes.rooms import methods_by_room

PROMISED = {
    "rtn-w8a8",
    "rtn-w4a8",
    "rtn-w4a32",
    "q-diffusion-w8a8",
    "q-diffusion-w4a8",
    "q-diffusion-w4a32",
    "gptq-w4a32",
    "gptq-w4a8",
}


def test_the_promised_recipes_are_there() -> None:
    assert set(names()) >= PROMISED


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", names())
def test_a_recipe_loads_builds_and_is_plain_data_again(name: str, budget: str) -> None:
    recipe = load(name, budget)
    assert recipe.name == name
    assert recipe.title
    assert recipe.paper
    assert all(isinstance(method, AbstractMethod) for method in recipe.methods().values())
    assert isinstance(make("halftone.calibrate.select", recipe.calibration.select, "select"), AbstractSelect)
    data = plain(recipe)
    assert build(Recipe, data) == recipe
    assert build(Recipe, json.loads(json.dumps(data))) == recipe
    assert build(Recipe, yaml.safe_load(yaml.safe_dump(data))) == recipe


@pytest.mark.parametrize("name", names())
def test_a_name_says_the_bits(name: str) -> None:
    bits = next(part for part in name.split("-") if part[0] == "w" and part[1].isdigit())
    weight, _, data = bits[1:].partition("a")
    (rule, *_) = load(name).policy
    assert rule.weight is not None
    assert rule.weight.bits == int(weight)
    assert (32 if rule.input is None else rule.input.bits) == int(data)


@pytest.mark.parametrize("name", names())
def test_smaller_budgets_do_less(name: str) -> None:
    def work(budget: str) -> list[int]:
        recipe = load(name, budget)
        return [recipe.calibration.samples, *(step.get("iterations", 0) for step in recipe.steps.values())]

    for less, more in (("demo", "fast"), ("fast", "paper")):
        assert all(a <= b for a, b in zip(work(less), work(more), strict=True))


@pytest.mark.parametrize("name", names())
def test_a_recipe_runs_and_every_planned_layer_holds_codes(
    name: str, make_pipe: Callable[[], DDIMPipeline], shrunk: Callable[..., list[str]]
) -> None:
    recipe = load(name, "demo", shrunk(load(name, "demo")))
    pipe = make_pipe()
    wanted = pipe.unet(x := torch.randn(2, 1, 8, 8), torch.tensor([5, 900])).sample.detach()
    result = run_recipe(pipe, recipe, 3, Run())
    assert result.module is pipe.unet
    planned = [path for path, facts in result.layers.items() if not facts["kept"]]
    assert planned
    for path in planned:
        layer = pipe.unet.get_submodule(path)
        assert isinstance(layer, QuantizedLayer)
        assert layer.weight.dtype == torch.uint8
        assert layer.scheme is not None
        said = scheme_of(result.layers[path]["role"], recipe.policy)
        assert said is not None
        assert layer.scheme.weight.bits == said.weight.bits
        assert layer.scheme.input == said.input
        assert int(layer.codes().max()) < 2**layer.scheme.weight.bits
    for path, owner, site in sites(pipe.unet):
        assert owner.site_affine(site) is not None, (path, site)
        assert not owner.taps
    assert list(result.reports) == list(recipe.steps)
    json.dumps(result.plain())
    with torch.no_grad():
        found = pipe.unet(x, torch.tensor([5, 900])).sample
    assert bool(torch.isfinite(found).all())
    assert not torch.equal(found, wanted)
    assert sqnr(wanted, found) > 3


# What each ablation may change of the whole recipe, by dotted path as it is resolved; steps that it lacks by their names.
ABLATIONS = {
    "no-split": {"steps.split"},
    "no-reconstruction": {"steps.gptq", "steps.reconstruct"},
    "no-blocks": {"steps.reconstruct"},
    "no-bias": {"steps.bias"},
    "no-network": {"steps.network"},
    "no-ranges": {"steps.ranges"},
    "no-shrink": {"steps.weights.range"},
    "no-influence": {"calibration.influence"},
    "no-judging": {"steps.reconstruct.judged_on"},
    "no-timesteps": {"calibration.select"},
    "no-operands": {"policy.0.operands"},
    "no-edges": {"policy.1.weight", "policy.1.input"},
    # AdaRound then has nothing to start from but its own start, for which the smallest number of iterations is not enough.
    "no-gptq": {"steps.gptq", "steps.reconstruct.start", "steps.reconstruct.iterations"},
}


def leaves(data: object, path: str = "") -> dict[str, object]:
    """Return the values of nested mappings and lists by dotted path."""
    if isinstance(data, dict) and data:
        items = data.items()
    elif isinstance(data, list) and data:
        items = ((str(number), value) for number, value in enumerate(data))
    else:
        return {path: data}
    return {key: value for name, part in items for key, value in leaves(part, f"{path}.{name}".lstrip(".")).items()}


def test_every_ablation_is_listed() -> None:
    prefix = "q-diffusion-w4a8-"
    assert {name.removeprefix(prefix) for name in names() if name.startswith(f"{prefix}no-")} == set(ABLATIONS)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_one_thing(name: str, budget: str) -> None:
    parts = ("policy", "calibration", "steps")
    whole, other = (
        leaves({part: plain(load(recipe, budget))[part] for part in parts})
        for recipe in ("q-diffusion-w4a8", f"q-diffusion-w4a8-{name}")
    )
    changed = {path for path in whole | other if whole.get(path) != other.get(path)}
    assert changed, "nothing was removed"
    allowed = ABLATIONS[name]
    assert not {path for path in changed if not any(path == one or path.startswith(f"{one}.") for one in allowed)}


def test_learned_steps_take_the_place_of_the_last_step() -> None:
    full, learned = load("q-diffusion-w4a8").steps, load("q-diffusion-w4a8-learned-steps").steps
    assert list(learned) == [*(key for key in full if key not in ("bias", "network")), "learn_steps", "bias"]
    for budget in BUDGETS:
        one, other = (load(f"q-diffusion-w4a8{end}", budget) for end in ("", "-learned-steps"))
        assert all(other.steps[key] == one.steps[key] for key in other.steps if key != "learn_steps")
        assert (other.calibration, other.policy) == (one.calibration, one.policy)


@pytest.mark.parametrize("name", ["q-diffusion-w4a8-learned-steps", "q-diffusion-w4a8-published"])
def test_the_paper_budget_has_the_published_numbers(name: str) -> None:
    recipe = load(name, "paper")
    steps = recipe.methods()
    weights, activations = steps["reconstruct"], steps["learn_steps"]
    assert isinstance(weights, AdaRound) and isinstance(activations, LearnedSteps)
    numbers = (weights.iterations, weights.batch, weights.lr, weights.warm_up, weights.beta, weights.start)
    assert numbers == (20000, 32, 1e-3, 0.2, (20.0, 2.0), "float")
    assert (activations.iterations, activations.batch, activations.lr, activations.power) == (5000, 32, 4e-4, 2.4)
    assert recipe.calibration.samples == 5120


def test_the_published_recipe_has_the_published_steps_only() -> None:
    recipe = load("q-diffusion-w4a8-published", "paper")
    assert list(recipe.steps) == ["split", "weights", "reconstruct", "activations", "learn_steps"]
    assert recipe.steps["split"]["select"] == "all"
    assert recipe.calibration.selection() == make(
        "halftone.calibrate.select", {"name": "uniform", "steps": 20}, "select"
    )
    (rule,) = recipe.policy  # the first and the last layer like all others
    assert rule.weight is not None and rule.weight.bits == 4


def test_methods_are_listed_by_room() -> None:
    rooms = methods_by_room()
    assert "ada_round" in rooms["reconstruct"]
    assert {"nearest", "gptq"} <= set(rooms["rounding"])
