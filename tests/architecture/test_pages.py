"""The pages stay true: their complete files work from outside, their commands parse, the files that they name are there."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer
import yaml
from diffusers import DDIMPipeline, DiTTransformer2DModel
from PIL import Image
from tests.tiny import pipeline, tiny_unet

import halftone
from halftone.artifact import described
from halftone.cli import app
from halftone.methods.contract import Run
from halftone.models.roles import architecture
from halftone.nn.layers import quantized_layers
from halftone.nn.running import set_engine
from halftone.nn.sites import sites
from halftone.recipes import BUDGETS, load, run_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SMALL = ["calibration.samples=4", "calibration.select={name: uniform, steps: 2}"]
# What makes the steps of the pages' recipes take a second, where a recipe has them.
SMALL_STEPS = {
    "weights": ["range=min_max"],
    "reconstruct": ["iterations=2", "batch=4"],
    "learn_steps": ["iterations=2", "batch=4"],
    "activations": ["samples=4", "range=min_max"],
}

Install = Callable[..., Path]
Suite = Callable[[str], ModuleType]


def block(page: str, language: str) -> str:
    """Return the one block of a language on a page."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return found


def inline(page: str, start: str) -> Any:
    """Return the YAML between backticks that begins with ``start`` on a page."""
    (found,) = re.findall(rf"`({start}: \{{.*\}})`", (ROOT / page).read_text())
    return yaml.safe_load(found)[start]


def commands(page: Path) -> list[list[str]]:
    """Return the ``halftone`` lines of a page, in blocks and between backticks, without what explains them."""
    text = page.read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for language, found in blocks if not language for line in found.split("\n")]
    lines += re.findall(r"`(halftone \w+ [^`]*)`", text)
    return [shlex.split(re.split(r"\s{2,}", line)[0]) for line in lines if line.startswith("halftone ")]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty current folder, where recipes are small and the zoo holds a tiny denoiser."""

    def less(name: str, budget: str = "fast", overrides: list[str] | tuple[str, ...] = (), parameters: int = 0) -> Any:
        steps = load(name, budget, list(overrides)).steps
        changes = [f"steps.{step}.{what}" for step in steps for what in SMALL_STEPS.get(step, [])]
        return load(name, budget, [*overrides, *SMALL, *changes], parameters)

    model = tmp_path / "zoo"
    pipeline(tiny_unet()).save_pretrained(model)
    monkeypatch.setattr("halftone.zoo.catalog.folder", lambda name, kind="pipeline": model)
    monkeypatch.setattr("halftone.api.load", less)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_the_page_on_formats(install: Install, conformance: Suite) -> None:
    page = "docs/adding-a-format.md"
    install({"square.py": block(page, "python")}, {"halftone.formats.kinds": {"square": "square:Square"}})
    suite = conformance("formats")
    squares = [each for each in suite.FORMATS if each.name.startswith("square")]
    assert [each.bits for each in squares] == list(range(1, 9))
    for each in squares:
        for law in suite.LAWS:
            law(each, suite.numbers(each, torch.linspace(-10, 300, 101).tolist()))
    pipe = pipeline(tiny_unet())
    probs = inline(page, "operands")["probs"]
    halftone.quantize(pipe, "rtn-w8a8", steps=2, overrides=[*SMALL, f"policy.0.operands.probs={yaml.safe_dump(probs)}"])
    assert {owner.site_specs[site].format for _, owner, site in sites(pipe.unet) if site == "probs"} == {"square8"}
    assert bool(torch.isfinite(pipe.unet(torch.randn(2, 1, 8, 8), 5).sample).all())


def test_the_page_on_kernels(install: Install, conformance: Suite) -> None:
    files = {"plain_integer.py": block("docs/adding-a-kernel.md", "python")}
    install(files, {"halftone.kernels.library": {"plain_integer": "plain_integer:PlainInteger"}})
    suite = conformance("kernels")
    assert "plain_integer" in suite.KERNELS
    suite.test_equals_the_reference("plain_integer")
    suite.test_low_precision_inputs_differ_by_their_own_precision("plain_integer", torch.bfloat16)
    suite.test_a_sample_does_not_depend_on_its_neighbours("plain_integer")
    suite.test_another_device_is_refused_in_a_sentence("plain_integer")
    suite.test_another_padding_is_refused_or_right("plain_integer")
    pipe = pipeline(tiny_unet())
    halftone.quantize(pipe, "rtn-w8a8", steps=2, overrides=SMALL)
    set_engine(pipe.unet, "plain")
    chosen = {layer.choice().name for _, layer in quantized_layers(pipe.unet) if isinstance(layer, torch.nn.Linear)}
    assert chosen == {"plain_integer"}


def test_the_page_on_methods(install: Install, tmp_path: Path) -> None:
    page = "docs/adding-a-method.md"
    install(
        {"stochastic.py": block(page, "python")}, {"halftone.methods.rounding": {"stochastic": "stochastic:Stochastic"}}
    )
    data = {
        "name": "mine",
        "title": "the steps of the page",
        "paper": "none",
        "policy": [{"roles": "*", "weight": {"format": "uint4", "granularity": "channel"}}],
        "calibration": {"samples": 4},
        "steps": inline(page, "steps"),
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    result = run_recipe(pipeline(tiny_unet()), load(str(tmp_path / "mine.yaml"), "fast"), 2, Run())
    assert list(result.reports) == ["weights", "again"]
    errors = [facts["weight_error"] for facts in result.reports["again"].layers.values()]
    assert len(errors) == len(result.layers) and 0 < max(errors) < 0.5


def test_the_page_on_recipes(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = "docs/adding-a-recipe.md"
    (small / "mine.yaml").write_text(block(page, "yaml"))
    for budget in BUDGETS:
        assert load("mine.yaml", budget).name == "mine"
    for line in commands(ROOT / page):
        if "mine.yaml" in line:
            assert app.run(line[1:]) == 0, capsys.readouterr().err
    unet = DDIMPipeline.from_pretrained(small / "out").unet
    held = {path: layer.scheme.weight.format for path, layer in quantized_layers(unet)}
    assert held["conv_in"] == held["conv_out"] == "uint8" and "time_embedding.linear_1" not in held
    assert held["mid_block.resnets.0.conv1"] == "uint4"


def test_the_page_on_architectures(tmp_path: Path) -> None:
    table = tmp_path / "DiTTransformer2DModel.toml"
    table.write_text(block("docs/adding-an-architecture.md", "toml"))
    shape = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 4, "sample_size": 4, "norm_num_groups": 1}
    model = DiTTransformer2DModel(**shape, in_channels=3, out_channels=6)
    told, guessed = architecture(model, table), architecture(model)
    assert {path: role.name for path, role in told.roles.items()} == {p: r.name for p, r in guessed.roles.items()}
    assert not any(role.inferred for role in told.roles.values())
    assert told.unit_classes == {"BasicTransformerBlock"}


def test_the_ten_lines_of_the_readme(small: Path) -> None:
    names: dict[str, Any] = {}
    exec(compile(block("README.md", "python"), "README.md", "exec"), names)
    assert described(names["pipe"].unet).recipe["name"] == "q-diffusion-w4a8"  # type: ignore[union-attr]
    assert names["result"].report["budget"] == "demo"
    with Image.open(small / "sample.png") as picture:
        assert picture.size == (8, 8)


def test_the_lines_of_the_page_on_artifacts(small: Path) -> None:
    pipe = pipeline(tiny_unet())
    halftone.quantize(pipe, "rtn-w4a8", steps=2)
    pipe.save_pretrained("out")
    names: dict[str, Any] = {}
    exec(compile(block("docs/artifact.md", "python"), "docs/artifact.md", "exec"), names)
    assert names["pipe"].unet.dtype == torch.bfloat16
    assert described(DDIMPipeline.from_pretrained("copy").unet) is not None


def examples_of_help() -> list[tuple[str, list[str]]]:
    """Return the examples in the help texts of all commands."""

    def texts(name: str, command: Any) -> Iterator[tuple[str, str]]:
        yield name, command.help or ""
        for sub, each in getattr(command, "commands", {}).items():
            yield from texts(f"{name} {sub}", each)

    everything = texts("halftone", typer.main.get_command(app.app))
    lines = [(name, line.strip()) for name, text in everything for line in text.split("\n")]
    found = [(name, line.partition(" > ")[0]) for name, line in lines if re.match(r"halftone \w+ \S", line)]
    return [(f"help of {name}", shlex.split(line)) for name, line in found]


@pytest.mark.parametrize(
    ("page", "line"),
    [*((page.name, line) for page in PAGES for line in commands(page)), *examples_of_help()],
    ids=lambda value: str(value),
)
def test_commands_parse(page: str, line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("captions.txt").touch()  # what a page names and an option wants to exist
    for folder in ("FOLDER", "weights", "photos"):
        Path(folder).mkdir()
    command: Any = typer.main.get_command(app.app)
    words = line[1:]
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert command.name != "halftone", f"no such command: {line[1]}"
    command.make_context("halftone", words)


def test_every_command_has_examples() -> None:
    named = {name.split()[3] for name, _ in examples_of_help()}
    assert named >= {"quantize", "generate", "evaluate", "bench", "inspect", "report", "recipes", "zoo"}


def test_every_page_has_its_commands() -> None:
    assert {line[1] for line in commands(ROOT / "README.md")} >= {
        "quantize",
        "generate",
        "evaluate",
        "bench",
        "recipes",
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_the_files_of_the_tour_are_there() -> None:
    named = re.findall(r"[\w./*<>-]+\.(?:py|toml|yaml|md)\b", (ROOT / "docs/tour.md").read_text())
    assert len(named) > 40
    source, docs = ROOT / "src/halftone", ROOT / "docs"
    patterns = {name: re.sub(r"<\w+>", "*", name) for name in named}
    places = [(source, "**/"), (docs, ""), (ROOT, "")]
    missing = {n for n, pattern in patterns.items() if not any([*p.glob(prefix + pattern)] for p, prefix in places)}
    assert missing == set()
