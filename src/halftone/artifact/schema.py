"""The JSON that describes a quantized denoiser: ``quantization_config`` in its ``config.json``.

Reading is strict and executes nothing: an unknown key, a value of another type or an impossible number is an
``ArtifactError`` that names the key. docs/artifact.md is the specification.
"""

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from halftone.formats import AbstractFormat
from halftone.formats import parse as parse_format
from halftone.foundation.errors import ArtifactError, HalftoneError, suggest
from halftone.nn import Scheme
from halftone.nn.attention import OPERANDS
from halftone.quant import QuantSpec

METHOD = "halftone"
VERSION = 1
_ROOT = "quantization_config"

_KEYS = {"quant_method", "version", "producer", "config_groups", "attention_operands", "ignore", "checksum"}
_KEYS |= {"recipe", "trajectory", "notes"}
_GROUP_KEYS = {"targets", "weights", "input_activations"}
_SPEC_KEYS = {"num_bits", "type", "symmetric", "strategy", "format", "zero", "dynamic"}
_ZERO_MODES = ("asymmetric", "symmetric", "none")
_DEEPEST = 64  # of recipe, trajectory and notes: far above any real one, far below Python's recursion limit
_MOST_KEPT = 4096  # tokens; prompts have fewer
_LONGEST_NAME = 32  # of a number format


@dataclass(frozen=True)
class Description:
    """What is quantized how in one denoiser, and where its numbers came from.

    Attributes:
        schemes: by module path, in the model's order.
        operands: specs of attention operands (``q``, ``k``, ``v``, ``probs``) by the attention's module path.
        ignore: paths of linears and convolutions that stay float.
        recipe: the resolved recipe.
        trajectory: the identity of the calibration trajectory, if there was one.
        notes: whatever else is worth keeping, trials for example.
        producer: name and version of the program that quantized it.
        checksum: of the denoiser's tensors, ``sha256:...``.
    """

    schemes: Mapping[str, Scheme]
    operands: Mapping[str, Mapping[str, QuantSpec]] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    trajectory: Mapping[str, Any] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    producer: Mapping[str, str] = field(default_factory=dict)
    checksum: str = ""


# Writing.


def to_json(description: Description) -> dict[str, Any]:
    """Return ``description`` as JSON data: the inverse of :func:`parse`."""
    targets: dict[Scheme, list[str]] = {}
    for path, scheme in description.schemes.items():
        targets.setdefault(scheme, []).append(path)
    return {
        "quant_method": METHOD,
        "version": VERSION,
        "producer": dict(description.producer),
        "config_groups": {
            f"group_{number}": _group_json(scheme, paths) for number, (scheme, paths) in enumerate(targets.items())
        },
        "attention_operands": {
            path: {site: _spec_json(spec) for site, spec in specs.items()}
            for path, specs in description.operands.items()
        },
        "ignore": list(description.ignore),
        "recipe": dict(description.recipe),
        "trajectory": None if description.trajectory is None else dict(description.trajectory),
        "notes": dict(description.notes),
        "checksum": description.checksum,
    }


def _group_json(scheme: Scheme, paths: list[str]) -> dict[str, Any]:
    group: dict[str, Any] = {
        "targets": paths,
        "weights": _spec_json(scheme.weight),
        "input_activations": None if scheme.input is None else _spec_json(scheme.input),
    }
    if scheme.segments:
        group["segments"] = list(scheme.segments)
    return group


def _spec_json(spec: QuantSpec) -> dict[str, Any]:
    said: dict[str, Any] = {
        "num_bits": spec.bits,
        "type": _type_of(spec.number_format),
        "symmetric": spec.zero == "symmetric",
        "strategy": spec.granularity,
        "format": spec.number_format.name,
        "zero": spec.zero,
        "dynamic": False,
    }
    return said | ({"keep": spec.keep} if spec.keep else {})


def _type_of(number_format: AbstractFormat) -> str:
    kind = type(number_format).__name__.lower()
    return {"integer": "int"}.get(kind, kind)


# Reading.


def parse(data: Any) -> Description:
    """Return what the JSON ``data`` describes.

    Raises:
        ArtifactError: anything that :func:`to_json` would not have written; a newer version says so first.
    """
    document = _mapping(_ROOT, data)
    if document.get("quant_method") != METHOD:
        raise _wrong("quant_method", f"'{METHOD}'", document.get("quant_method"), "Another program made this.")
    _check_version(document.get("version"))
    _check_keys(_ROOT, document, _KEYS)
    schemes = dict(_schemes(_mapping("config_groups", document["config_groups"])))
    if not schemes:
        raise ArtifactError(f"{_ROOT}.config_groups", "at least one quantized layer", "none")
    ignore = _paths("ignore", document["ignore"])
    both = next((path for path in ignore if path in schemes), None)
    if both is not None:
        raise ArtifactError(f"{_ROOT}.ignore", "layers that no group targets", f"'{both}'")
    checksum = _string("checksum", document["checksum"])
    if not checksum.startswith("sha256:"):
        raise _wrong("checksum", "'sha256:' and 64 hexadecimal digits", checksum)
    trajectory = document["trajectory"]
    return Description(
        schemes,
        dict(_operands(_mapping("attention_operands", document["attention_operands"]))),
        tuple(ignore),
        _free("recipe", document["recipe"]),
        None if trajectory is None else _free("trajectory", trajectory),
        _free("notes", document["notes"]),
        _producer(_mapping("producer", document["producer"])),
        checksum,
    )


def _check_version(version: Any) -> None:
    if type(version) is not int or version < 1:
        raise _wrong("version", "a whole number from 1", version)
    if version > VERSION:
        fix = "A newer Halftone made this: upgrade with pip install -U halftone."
        raise _wrong("version", f"at most {VERSION}", version, fix)


def _producer(producer: dict[str, Any]) -> dict[str, str]:
    _check_keys("producer", producer, {"name", "version"})
    return {key: _string(f"producer.{key}", value) for key, value in producer.items()}


def _schemes(groups: dict[str, Any]) -> Iterator[tuple[str, Scheme]]:
    seen: set[str] = set()
    for name, data in groups.items():
        where = f"config_groups.{name}"
        group = _mapping(where, data)
        _check_keys(where, group, _GROUP_KEYS, {"segments"})
        weight = _spec(f"{where}.weights", group["weights"])
        activations = group["input_activations"]
        given = None if activations is None else _spec(f"{where}.input_activations", activations, ("tensor",))
        segments = _segments(f"{where}.segments", group["segments"]) if "segments" in group else ()
        for path in _paths(f"{where}.targets", group["targets"]):
            if path in seen:
                raise _wrong(f"{where}.targets", "each layer in one group", path)
            seen.add(path)
            yield path, Scheme(weight, given, segments)


def _segments(where: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) < 2 or not all(type(size) is int and size > 0 for size in value):
        raise _wrong(where, "a list of two or more positive whole numbers", value)
    return tuple(value)


def _operands(data: dict[str, Any]) -> Iterator[tuple[str, dict[str, QuantSpec]]]:
    for path, sites in data.items():
        where = f"attention_operands.{path}"
        specs = _mapping(where, sites)
        unknown = next((site for site in specs if site not in OPERANDS), None)
        if unknown is not None or not specs:
            raise _wrong(where, "some of " + ", ".join(OPERANDS), unknown)
        yield path, {site: _spec(f"{where}.{site}", spec, ("tensor",)) for site, spec in specs.items()}


def _spec(where: str, value: Any, strategies: tuple[str, ...] = ("tensor", "channel")) -> QuantSpec:
    data = _mapping(where, value)
    # Tokens are an activation's, whose only strategy is one scale for all.
    _check_keys(where, data, _SPEC_KEYS, {"keep"} if strategies == ("tensor",) else set())
    keep = data.get("keep", 1)
    if type(keep) is not int or not 1 <= keep <= _MOST_KEPT:
        raise _wrong(f"{where}.keep", f"a number of tokens, 1 to {_MOST_KEPT}", keep)
    name = _string(f"{where}.format", data["format"])
    for key, choices in (("strategy", strategies), ("zero", _ZERO_MODES)):
        if data[key] not in choices:
            raise _wrong(f"{where}.{key}", "one of " + ", ".join(choices), data[key])
    try:
        # Only the installed kinds are asked whether they know the name: it never becomes an import.
        canonical = len(name) <= _LONGEST_NAME and parse_format(name).name == name
        spec = QuantSpec(name, data["strategy"], data["zero"], keep=data.get("keep", 0)) if canonical else None
    except HalftoneError as error:
        raise _wrong(f"{where}.format", error.expected or "a known number format", name) from error
    if spec is None:
        raise _wrong(f"{where}.format", "a number format in its usual spelling", name)
    for key, expected in _spec_json(spec).items():
        # These say again, in the common vocabulary, what the format and the zero mode say.
        if type(data[key]) is not type(expected) or data[key] != expected:
            raise _wrong(f"{where}.{key}", f"{expected!r} for '{name}', zero '{spec.zero}'", data[key])
    return spec


# Pieces of JSON.


def _mapping(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _wrong(where, "an object", value)
    return value


def _check_keys(
    where: str, data: dict[str, Any], required: set[str], optional: frozenset[str] | set[str] = frozenset()
) -> None:
    known = required | optional
    for key in data:
        if key not in known:
            raise ArtifactError(_path(where), "known keys only", f"'{_shown(key)}'", suggest(key[:100], known))
    missing = sorted(required - data.keys())
    if missing:
        raise ArtifactError(_path(where), "the keys " + ", ".join(missing), "none of that name")


def _string(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(where, "a string", value)
    return value


def _paths(where: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(path, str) and path for path in value):
        raise _wrong(where, "a list of module paths", value)
    if len(set(value)) != len(value):
        raise ArtifactError(_path(where), "each path once", "one twice")
    return value


def _free(where: str, value: Any) -> dict[str, Any]:
    """Return ``value``, an object of any JSON inside, after a look that does not recurse."""
    level: list[Any] = [_mapping(where, value)]
    for _ in range(_DEEPEST):
        if not level:
            return value
        below: list[Any] = []
        for node in level:
            below += _children(where, node)
        level = below
    raise ArtifactError(_path(where), f"at most {_DEEPEST} levels", "more")


def _children(where: str, node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(_mapping(where, node).values())
    if isinstance(node, list):
        return node
    if node is None or isinstance(node, bool | int | float | str):
        return []
    raise _wrong(where, "JSON", node)


def _path(where: str) -> str:
    shown = where if len(where) <= 200 else where[:200] + "..."
    return shown if shown.startswith(_ROOT) else f"{_ROOT}.{shown}"


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        return "a very large number"


def _wrong(where: str, expected: str, got: Any, fix: str = "") -> ArtifactError:
    return ArtifactError(_path(where), expected, _shown(got), fix)
