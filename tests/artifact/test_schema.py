"""The reader of ``quantization_config``: what is written is read back; from anything else comes ArtifactError only."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import tiny_unet

from halftone.artifact.schema import Description, parse, to_json
from halftone.artifact.structure import prepare
from halftone.foundation.errors import ArtifactError
from halftone.nn import Scheme
from halftone.quant import QuantSpec

GOLDEN = json.loads((Path(__file__).parent / "golden" / "tiny_unet.json").read_text())

ZEROS = st.sampled_from(["asymmetric", "symmetric", "none"])
NAMES = st.sampled_from([f"{sign}int{bits}" for sign in ("u", "") for bits in range(2, 9)])
SPECS = st.builds(QuantSpec, NAMES, st.just("tensor"), ZEROS)
SCHEMES = st.builds(
    Scheme,
    st.builds(QuantSpec, NAMES, st.sampled_from(["tensor", "channel"]), ZEROS),
    st.none() | SPECS,
    st.just(()) | st.lists(st.integers(1, 500), min_size=2, max_size=4).map(tuple),
)
PATHS = st.text("abc.01_", min_size=1, max_size=8)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
FREE = st.dictionaries(st.text(max_size=6), JSON, max_size=3)


@given(st.data(), st.dictionaries(PATHS, SCHEMES, min_size=1, max_size=6), FREE, st.none() | FREE, FREE)
def test_what_is_written_is_read_back(
    data: st.DataObject, schemes: Any, recipe: Any, trajectory: Any, notes: Any
) -> None:
    ignore = tuple(path for path in data.draw(st.lists(PATHS, unique=True, max_size=3)) if path not in schemes)
    sites = st.dictionaries(st.sampled_from(["q", "k", "v", "probs"]), SPECS, min_size=1)
    operands = data.draw(st.dictionaries(PATHS, sites, max_size=2))
    producer = {"name": "halftone", "version": "1"}
    description = Description(schemes, operands, ignore, recipe, trajectory, notes, producer, "sha256:0")
    written = json.loads(json.dumps(to_json(description), sort_keys=True))
    assert parse(written) == description
    assert to_json(parse(written)).keys() == written.keys()


def test_golden_is_read() -> None:
    description = parse(GOLDEN)
    assert to_json(description) == GOLDEN
    assert {scheme.weight.format for scheme in description.schemes.values()} == {"uint4"}


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values inside ``node``."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


PLACES = places(GOLDEN)[1:]
ODD = st.sampled_from(
    [10**400, -1, True, float("nan"), "uint4", "uint٤", "asymmetric", "os.system", [], {}, [[]], "conv_in"]
)


def mutate(data: st.DataObject) -> Any:
    """Return the golden document with one to three values replaced, removed or renamed."""
    document = copy.deepcopy(GOLDEN)
    for place in data.draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=3)):
        node = document
        try:
            for key in place[:-1]:
                node = node[key]
            action = data.draw(st.sampled_from(["replace", "remove", "rename"]))
            if action == "replace":
                node[place[-1]] = data.draw(JSON | ODD)
            elif action == "remove":
                del node[place[-1]]
            elif isinstance(node, dict):
                node[data.draw(st.text(max_size=9))] = node.pop(place[-1])
        except (KeyError, IndexError, TypeError):  # an earlier change took the place away
            continue
    return document


@settings(max_examples=400)
@given(st.data())
def test_mutations_raise_artifact_errors_only(data: st.DataObject) -> None:
    try:
        parse(mutate(data))
    except ArtifactError as error:
        assert "quantization_config" in str(error) and len(str(error)) < 2000


@settings(max_examples=40)
@given(st.data())
def test_models_refuse_mutations_with_artifact_errors_only(data: st.DataObject) -> None:
    with torch.device("meta"):
        unet = tiny_unet(block_out_channels=(16, 32))
    try:
        prepare(unet, parse(mutate(data)))
    except ArtifactError as error:
        assert "quantization_config" in str(error)


@given(JSON)
def test_any_json_raises_artifact_errors_only(data: Any) -> None:
    with pytest.raises(ArtifactError):
        parse(data)


def test_deep_documents() -> None:
    deep: Any = {}
    for _ in range(5000):
        deep = {"a": deep}
    with pytest.raises(ArtifactError, match="levels"):
        parse({**GOLDEN, "recipe": deep})


def test_messages_name_the_key() -> None:
    broken = copy.deepcopy(GOLDEN)
    broken["config_groups"]["group_0"]["weights"]["zero"] = "middle"
    with pytest.raises(
        ArtifactError, match=r"quantization_config\.config_groups\.group_0\.weights\.zero: expected one of"
    ):
        parse(broken)
