"""Reading recipes: strict, with suggestions; contradictions are refused before any work; extends, drop and set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from diffusers import DDIMPipeline

from halftone.foundation.errors import ConfigError
from halftone.methods.contract import Run
from halftone.recipes import load, run_recipe
from halftone.recipes.recipe import LARGE

BASE: dict[str, Any] = {
    "name": "mine",
    "title": "a recipe of mine",
    "paper": "none",
    "policy": [{"roles": "*", "weight": {"format": "uint4", "granularity": "channel"}, "input": {"format": "uint8"}}],
    "steps": {"weights": {"method": "rounding/nearest"}, "ranges": {"method": "ranges/static"}},
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write a recipe file and return its path."""

    def write_recipe(stem: str = "mine", /, **data: Any) -> str:
        path = tmp_path / f"{stem}.yaml"
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        return str(path)

    return write_recipe


def changed(**changes: Any) -> dict[str, Any]:
    return {**BASE, **changes}


def test_a_recipe_of_ones_own(write: Callable[..., str]) -> None:
    recipe = load(write(**BASE))
    assert (recipe.name, list(recipe.steps)) == ("mine", ["weights", "ranges"])
    assert recipe.policy[0].weight.bits == 4


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("q-difusion-w4a8", "'q-diffusion-w4a8'"), ("rtn-w4a", "'rtn-w4a"), ("zzz", "Known: .*rtn-w8a8")],
)
def test_an_unknown_recipe(name: str, suggestion: str) -> None:
    with pytest.raises(ConfigError, match=suggestion):
        load(name)


def test_an_unknown_budget() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'fast'"):
        load("rtn-w4a8", "fastt")


STEP = {"method": "rounding/nearest"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (changed(polcy=[]), "Did you mean 'policy'"),
        (changed(policy=[{"role": "*"}]), r"policy\.0\.role.*Did you mean 'roles'"),
        (changed(policy=[{"roles": "*", "weight": {"formt": "uint4"}}]), r"weight\.formt.*'format'"),
        (changed(policy=[{"roles": "*", "weight": {"format": "unit4"}}]), "unit4"),
        (changed(policy=[{"roles": "*", "weight": {"zero": "middle"}}]), "symmetric"),
        (changed(steps={"weights": {"method": "rounding/nearst"}}), "Did you mean 'nearest'"),
        (changed(steps={"weights": {"method": "roundin/nearest"}}), "Did you mean 'rounding'"),
        (changed(steps={"weights": {"method": "nearest"}}), "room/name"),
        (changed(steps={"weights": {"range": "shrink"}}), "room/name"),
        (changed(steps={"weights": {**STEP, "rnge": "shrink"}}), r"steps\.weights\.rnge.*'range'"),
        (changed(steps={"w": STEP, "g": {"method": "rounding/gptq", "damping": "much"}}), r"steps\.g\.damping"),
        (changed(steps={}), "at least one"),
        (changed(calibration={"samples": "many"}), r"calibration\.samples"),
        (changed(budgets={"quick": {}}), "demo, fast or paper"),
        ({k: v for k, v in BASE.items() if k != "policy"}, "'policy'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unknown_and_wrong_keys(write: Callable[..., str], data: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(write(**data))


def test_extends_drop_and_set(write: Callable[..., str]) -> None:
    changes = {"steps.reconstruct.lr": 0.5, "policy.0.weight.format": "uint3", "calibration.samples": 3}
    recipe = load(_file(write, "child", extends="q-diffusion-w4a8-learned-steps", drop=["learn_steps"], set=changes))
    parent = load("q-diffusion-w4a8-learned-steps")
    assert list(recipe.steps) == [step for step in parent.steps if step != "learn_steps"]
    assert recipe.steps["reconstruct"] == {**parent.steps["reconstruct"], "lr": 0.5}
    assert (recipe.policy[0].weight.bits, recipe.calibration.samples) == (3, 3)
    assert recipe.policy[0].input == parent.policy[0].input
    assert (recipe.name, recipe.title) == ("child", "child")


def _file(write: Callable[..., str], name: str, **data: Any) -> str:
    return write(name, **{"name": name, "title": name, "paper": "none", **data})


def test_a_budget_of_the_extended_recipe_loses_what_was_dropped(write: Callable[..., str]) -> None:
    path = _file(write, "child", extends="q-diffusion-w4a8-learned-steps", drop=["learn_steps"])
    recipe = load(path, "demo")
    assert (
        recipe.steps["reconstruct"]["iterations"] == load("q-diffusion-w4a8", "demo").steps["reconstruct"]["iterations"]
    )
    assert "learn_steps" not in recipe.steps


def test_a_large_denoiser_has_budgets_of_its_own(write: Callable[..., str]) -> None:
    large = {"fast": {"drop": ["reconstruct"], "set": {"calibration.samples": 7, "steps.activations.samples": 2}}}
    path = _file(write, "child", extends="q-diffusion-w4a8-published", drop=["learn_steps"], large=large)
    small, same = load(path, "fast"), load(path, "fast", parameters=LARGE)
    assert small == same and "reconstruct" in small.steps and small.calibration.samples == 512
    found = load(path, "fast", ["calibration.samples=8"], LARGE + 1)
    assert list(found.steps) == ["split", "weights", "activations"]
    assert (found.calibration.samples, found.steps["activations"]["samples"]) == (8, 2)
    assert (
        small.title == "child" and "without reconstruct" in found.title
    )  # or its card would promise what was left out
    assert load(path, "paper", parameters=LARGE + 1) == load(path, "paper")
    grandchild = _file(write, "grandchild", extends=path, drop=["reconstruct"])
    assert list(load(grandchild, "fast", parameters=LARGE + 1).steps) == ["split", "weights", "activations"]


@pytest.mark.parametrize(
    ("large", "words"),
    [
        ({"quick": {}}, "large: expected demo, fast or paper"),
        ({"fast": {"steps": []}}, "large.fast"),
        ({"fast": {"drop": ["reconstruction"]}}, "large.fast.drop: expected a step of the recipe.*reconstruct"),
        (["fast"], "a mapping by budget"),
    ],
)
def test_wrong_words_about_large_denoisers(write: Callable[..., str], large: Any, words: str) -> None:
    path = _file(write, "child", extends="q-diffusion-w4a8-published", large=large)
    with pytest.raises(ConfigError, match=words):
        load(path, "fast", parameters=LARGE + 1)


def test_extending_a_file_twice(write: Callable[..., str]) -> None:
    first = write("first", **BASE)
    second = _file(write, "second", extends=first, set={"steps.weights.range": "min_max"})
    third = _file(write, "third", extends=second, set={"steps.ranges.samples": 3})
    assert load(third).steps == {
        "weights": {"method": "rounding/nearest", "range": "min_max"},
        "ranges": {"method": "ranges/static", "samples": 3},
    }
    assert load(first).steps["weights"] == STEP


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"extends": "q-diffusion-w4a9"}, "Did you mean 'q-diffusion-w4a8'"),
        ({"extends": "rtn-w4a8", "drop": ["weigths"]}, "Did you mean 'weights'"),
        ({"drop": ["weights"]}, "extends beside drop and set"),
        ({"extends": "rtn-w4a8", "set": {"steps.weigths.range": "shrink"}}, "weigths"),
        ({"extends": "rtn-w4a8", "set": {"steps.weights.rang": "shrink"}}, "Did you mean 'range'"),
        ({"extends": "rtn-w4a8", "drop": ["weights", "activations"]}, "at least one"),
    ],
    ids=["parent", "drop", "orphan", "set path", "set key", "all dropped"],
)
def test_wrong_inheritance(write: Callable[..., str], data: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(_file(write, "child", **data))


def test_a_circle(write: Callable[..., str], tmp_path: Path) -> None:
    first, second = str(tmp_path / "first.yaml"), str(tmp_path / "second.yaml")
    _file(write, "first", extends=second)
    _file(write, "second", extends=first)
    with pytest.raises(ConfigError, match="no circle"):
        load(first)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b", "a mapping"),
        ("a: [", "valid YAML"),
        ("", "a mapping"),
        ("!!python/object:os.system {}", "valid YAML"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load(str(path))


def test_a_missing_file() -> None:
    with pytest.raises(ConfigError, match="nothing there"):
        load("nowhere/mine.yaml")
    with pytest.raises(ConfigError, match="nothing there. Did you mean 'q-diffusion-w4a8'"):
        load("q-diffusion-w4a8.yaml")
    with pytest.raises(ConfigError, match="Recipes that come with Halftone: .*rtn-w4a8"):
        load("zzz.yaml")


def test_overrides_come_last() -> None:
    recipe = load(
        "q-diffusion-w4a8", "demo", ["steps.reconstruct.iterations=7", "steps.weights.range={name: shrink, power: 2}"]
    )
    assert recipe.steps["reconstruct"]["iterations"] == 7
    assert recipe.steps["weights"]["range"] == {"name": "shrink", "power": 2}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("steps.reconstruct.iteration=7", "Did you mean 'iterations'"),
        ("steps.reconstuct.iterations=7", "Did you mean 'reconstruct'"),
        ("steps.reconstruct.iterations=many", "iterations"),
        ("steps.activations.range=ema", r"^steps\.activations\.range: .*'ema'. Known: .*moving_average"),
        ("steps.activations.range=shrnk", r"^steps\.activations\.range: .*Did you mean 'shrink'"),
        (
            "steps.activations.range={name: shrink, candidate: 3}",
            r"^steps\.activations\.range\.candidate: .*'candidates'",
        ),
        ("steps.weights.range={candidates: 3}", r"^steps\.weights\.range\.name"),
        ("calibration.select=unifrm", r"calibration\.select: .*Did you mean 'uniform'"),
        ("calibration.select={name: uniform, step: 3}", r"calibration\.select\.step: .*Did you mean 'steps'"),
        ("policy.9.keep=true", r"'9'\. They are policy\.0 to policy\.1\."),
        ("policy.0.weight.format.bits=3", r"Set 'policy\.0\.weight\.format' itself"),
        ("policy.0.weight.zero=3", "Choose one of 'asymmetric'"),
        ("steps.reconstruct.start=off", "reads a bare on, off.* quote it"),
        ("seed", "path.to.key=value"),
    ],
)
def test_wrong_overrides(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load("q-diffusion-w4a8", "demo", [override])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("steps.reconstruct.iterations=-5", r"^steps\.reconstruct\.iterations: expected 1 or more, got -5"),
        ("steps.reconstruct.batch=0", r"^steps\.reconstruct\.batch: "),
        ("steps.reconstruct.lr=1e30", r"^steps\.reconstruct\.lr: expected a number above 0, at most 1000, got 1e\+30"),
        ("steps.reconstruct.lr=.nan", r"^steps\.reconstruct\.lr: "),
        ("steps.reconstruct.beta=[20, -1]", r"^steps\.reconstruct\.beta: .*got -1"),
        ("steps.reconstruct.warm_up=2", r"^steps\.reconstruct\.warm_up: expected a number from 0 to 1"),
        ("steps.learn_steps.power=.inf", r"^steps\.learn_steps\.power: "),
        ("steps.activations.samples=0", r"^steps\.activations\.samples: "),
        ("steps.weights.range={name: shrink, candidates: 0}", r"^steps\.weights\.range\.candidates: "),
        ("steps.split.samples=0", r"^steps\.split\.samples: "),
        ("calibration.samples=0", r"calibration\.samples: expected 1 or more, got 0"),
        ("calibration.select.steps=0", r"calibration\.select\.steps: expected 1 or more, got 0"),
    ],
)
def test_values_out_of_range(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load("q-diffusion-w4a8-learned-steps", "paper", [override])


@pytest.mark.parametrize("word", ["on", "off", "'on'", "all", "auto"])
def test_on_and_off_are_words_for_a_split(word: str) -> None:
    assert load("q-diffusion-w4a8", "demo", [f"steps.split.select={word}"])


def test_a_quantized_model_is_refused(make_pipe: Callable[[], DDIMPipeline], shrunk: Callable[..., list[str]]) -> None:
    pipe, recipe = make_pipe(), load("rtn-w4a32", "demo", ["calibration.samples=4"])
    run_recipe(pipe, recipe, 2, Run())
    with pytest.raises(ConfigError, match="Load the original model"):
        run_recipe(pipe, recipe, 2, Run())


def test_a_new_step_goes_before_what_it_must_precede(write: Callable[..., str]) -> None:
    sinks = "steps.sinks={method: transforms/token_sinks}"
    usual = list(load("q-diffusion-w4a8").steps)
    found = list(load("q-diffusion-w4a8", "demo", [sinks, "steps.bias2={method: corrections/bias}"]).steps)
    assert found == ["split", "sinks", *usual[1:], "bias2"] and usual[0] == "split"
    path = _file(write, "child", extends="rtn-w8a8", set={"steps.sinks": {"method": "transforms/token_sinks"}})
    assert list(load(path).steps)[0] == "sinks"
    with pytest.raises(ConfigError, match="steps.sinks.method"):
        load("rtn-w8a8", overrides=["steps.sinks={samples: 3}"])
    for nothing in ({}, {"steps": None}, {"steps": []}):
        broken = write(
            "broken",
            **{"name": "broken", "title": "broken", "paper": "none", "policy": [], "calibration": {}, **nothing},
        )
        with pytest.raises(ConfigError, match="steps"):
            load(broken, overrides=["calibration.samples=8"])
