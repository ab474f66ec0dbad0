"""What others add from outside works without an edit inside: a number format, a method, a role table for their architecture.

The three lie in a package of their own that entry points make known; the conformance suite of formats and a recipe run on them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import DDIMPipeline
from tests.comparison import sqnr
from tests.tiny import pipeline

from halftone.formats import Affine, dequantize, fake_quantize, parse, quantize
from halftone.foundation import registry
from halftone.foundation.errors import ConfigError, MatchError
from halftone.methods.contract import Run
from halftone.models.roles import architecture
from halftone.nn.layers import quantized_layers
from halftone.nn.running import set_engine
from halftone.quant import QuantSpec
from halftone.recipes import load, run_recipe

Suite = Callable[[str], ModuleType]

FORMAT = '''
"""Powers of two with a sign, and zero: -2**(n-1) .. -1, 0, 1 .. 2**(n-2) for n = 2**(bits-1)."""
from dataclasses import dataclass

import torch

from halftone.formats import AbstractFormat
from halftone.foundation.errors import FormatError


@dataclass(frozen=True)
class PowersOfTwo(AbstractFormat):
    bits: int = 4

    def __post_init__(self):
        if not 2 <= self.bits <= 4:
            raise FormatError("powers of two", "2 to 4 bits", str(self.bits))

    @classmethod
    def parse(cls, name):
        return cls(int(name[3:])) if name[:3] == "pot" and name[3:] in ("2", "3", "4") else None

    @property
    def name(self):
        return f"pot{self.bits}"

    def _grid(self):
        half = 2 ** (self.bits - 1)
        below = [-(2.0**i) for i in reversed(range(half))]
        return torch.tensor([*below, 0.0, *[2.0**i for i in range(half - 1)]])

    @property
    def low(self):
        return float(self._grid()[0])

    @property
    def high(self):
        return float(self._grid()[-1])

    def _place(self, x):
        grid = self._grid().to(x)
        return torch.bucketize(x, (grid[1:] + grid[:-1]) / 2)

    def round(self, x):
        return self._grid().to(x)[self._place(x)]

    def encode(self, x):
        return self._place(x).to(torch.uint8)

    def decode(self, codes):
        return self._grid().to(codes.device)[codes.long()]
'''

METHOD = '''
"""Round towards zero."""
from dataclasses import dataclass

from halftone.formats import quantize
from halftone.formats.segments import along_weight
from halftone.methods.contract import AbstractMethod, StepReport
from halftone.quant.weights import weight_affine


@dataclass(frozen=True)
class TowardsZero(AbstractMethod):
    gives = ("weight_scales",)
    by: float = 0.5

    def apply(self, model, data, run):
        layers = {}
        for path, scheme in model.plan.quantized().items():
            weight = model.originals[path]
            segments = scheme.segments or (weight.shape[1],)
            affine = weight_affine(weight, segments, scheme.weight, "min_max")
            broadcast = along_weight(affine, segments, weight.ndim)
            nearer = weight.sign() * (weight.abs() - self.by * broadcast.scale).clamp(min=0)
            model.layer(path).hold(quantize(nearer, broadcast, scheme.weight.number_format), affine, scheme)
            layers[path] = {"by": self.by}
        return StepReport(layers)
'''

DENOISER = '''
"""An architecture that no table of Halftone knows."""
from types import SimpleNamespace

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn


class ForeignDenoiser(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, sample_size: int = 8, in_channels: int = 1, width: int = 6):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.clock = nn.Linear(1, width)
        self.middle = nn.Conv2d(width, width, 3, padding=1, groups=2)
        self.merge = nn.Conv2d(2 * width, width, 1)
        self.head = nn.Conv2d(width, in_channels, 3, padding=1)

    def forward(self, sample, timestep):
        t = torch.as_tensor(timestep).reshape(-1, 1).expand(len(sample), 1)
        first = self.stem(sample)
        deep = self.middle(first.relu()) + self.clock(t / 1000)[..., None, None]
        return SimpleNamespace(sample=self.head(self.merge(torch.cat([deep, first], dim=1)).tanh()))
'''

TABLE = """
[roles]
"stem" = "conv_in"
"clock" = "time.embed"
"middle" = "body.conv"
"merge" = "body.shortcut"
"head" = "conv_out"
"""

RECIPE = """
name: foreign
title: a method and a format from outside
paper: none
policy:
  - roles: "*"
    weight: {format: pot4, granularity: channel, zero: none}
    input: {format: uint8}
  - roles: conv_out
    weight: {format: uint8, granularity: channel, zero: symmetric}
  - {roles: time.*, keep: true}
calibration: {select: uniform, samples: 8}
steps:
  split: {method: transforms/split_shortcut, select: all}
  weights: {method: rounding/towards-zero, by: 0.25}
  activations: {method: ranges/static, range: min_max, samples: 8}
"""

POINTS = {
    "halftone.formats.kinds": {"powers_of_two": "powers_of_two:PowersOfTwo"},
    "halftone.methods.rounding": {"towards-zero": "towards_zero:TowardsZero"},
}


@pytest.fixture
def outside(install: Callable[..., Path]) -> Path:
    """The folder of a package with all three."""
    files = {
        "powers_of_two.py": FORMAT,
        "towards_zero.py": METHOD,
        "denoiser.py": DENOISER,
        "roles.toml": TABLE,
        "foreign.yaml": RECIPE,
    }
    return install(files, POINTS)


def make_pipe() -> DDIMPipeline:
    from foreign_package.denoiser import ForeignDenoiser  # type: ignore[import-not-found]

    return pipeline(ForeignDenoiser().eval())


def test_without_the_package_nothing_of_it_is_known() -> None:
    with pytest.raises(ConfigError, match="pot4"):
        parse("pot4")
    with pytest.raises(ConfigError, match="towards_zero"):
        registry.find("halftone.methods.rounding", "towards_zero")


def test_a_foreign_format_passes_the_conformance_suite(outside: Path, conformance: Suite) -> None:
    suite = conformance("formats")
    foreign = [format for format in suite.FORMATS if format.name.startswith("pot")]
    assert [format.bits for format in foreign] == [2, 3, 4]
    for format in foreign:
        for law in suite.LAWS:
            law(format, suite.numbers(format, torch.linspace(-300, 300, 101).tolist()))


def test_the_conformance_suite_would_notice_a_broken_format(outside: Path, conformance: Suite) -> None:
    text = (outside / "powers_of_two.py").read_text()
    (outside / "powers_of_two.py").write_text(
        text.replace("(grid[1:] + grid[:-1]) / 2", "(grid[1:] * 3 + grid[:-1]) / 4")
    )
    suite = conformance("formats")
    with pytest.raises(AssertionError):
        suite.rounds_to_the_nearest(parse("pot4"), torch.linspace(-300, 300, 1001))


@pytest.mark.parametrize("zero", ["none", "asymmetric"])
def test_a_foreign_format_works_in_the_affine_map(outside: Path, zero: str) -> None:
    spec = QuantSpec("pot4", "channel", zero)  # type: ignore[arg-type]
    x = torch.randn(4, 50)
    affine: Affine = spec.affine(x.amin(1), x.amax(1)).view(-1, 1)
    grid = spec.number_format
    assert torch.equal(fake_quantize(x, affine, grid), dequantize(quantize(x, affine, grid), affine, grid))
    assert float(fake_quantize(torch.zeros(4, 1), affine, grid).abs().max()) == 0
    assert torch.equal(grid.round(affine.zero_point), affine.zero_point)
    levels = (grid.decode(torch.arange(16, dtype=torch.uint8)) - affine.zero_point) * affine.scale
    distance = (x[..., None] - levels[:, None]).abs().amin(-1)
    assert torch.allclose((fake_quantize(x, affine, grid) - x).abs(), distance, atol=1e-6), "rounded twice"


def test_a_foreign_architecture_needs_its_table(outside: Path) -> None:
    unet = make_pipe().unet
    with pytest.raises(MatchError, match="stem .*clock"):
        architecture(unet)
    assert len(architecture(unet, outside / "roles.toml").roles) == 5


def test_a_recipe_runs_on_all_three(outside: Path) -> None:
    recipe = load(str(outside / "foreign.yaml"))
    pipe = make_pipe()
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([3, 500, 999])
    wanted = pipe.unet(x, t).sample.detach()
    result = run_recipe(pipe, recipe, 3, Run(), roles=outside / "roles.toml")
    held = {path: layer.scheme for path, layer in quantized_layers(pipe.unet)}
    assert {path: scheme.weight.format for path, scheme in held.items()} == {
        "stem": "pot4",
        "middle": "pot4",
        "merge": "pot4",
        "head": "uint8",
    }
    assert held["merge"].segments == (6, 6)
    assert result.roles()["merge"] == "body.shortcut"
    assert result.reports["weights"].layers["stem"] == {"by": 0.25}
    assert json.loads(json.dumps(result.plain()))["recipe"]["steps"]["weights"]["method"] == "rounding/towards-zero"
    with torch.no_grad():
        found = {}
        for engine in ("simulate", "auto", "torch"):
            set_engine(pipe.unet, engine)
            found[engine] = pipe.unet(x, t).sample
    for other in ("auto", "torch"):
        assert sqnr(found["simulate"], found[other]) > 60
    assert sqnr(wanted, found["simulate"]) > 5


def test_a_foreign_method_takes_part_in_the_order_of_steps(outside: Path) -> None:
    path = outside / "foreign.yaml"
    path.write_text(RECIPE.replace("  weights: {method: rounding/towards-zero, by: 0.25}\n", ""))
    with pytest.raises(ConfigError, match="weight_scales before 'activations', got none.*rounding/towards_zero"):
        load(str(path))


def test_a_method_without_its_package_is_an_error_that_names_it(outside: Path) -> None:
    path = outside / "foreign.yaml"
    path.write_text(RECIPE.replace("towards-zero", "towards-infinity"))
    with pytest.raises(ConfigError, match="towards"):
        load(str(path))
