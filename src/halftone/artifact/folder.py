"""What can be known about a pipeline folder before anything in it is loaded."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from halftone.artifact.schema import METHOD, Description, parse
from halftone.artifact.weights_file import AGAIN, Stored, read_header
from halftone.foundation.errors import ArtifactError, ConfigError

INDEX = "model_index.json"
_WEIGHTS, _TRANSFORMERS_WEIGHTS = "diffusion_pytorch_model", "model"
_LONGEST_JSON = 64 * 2**20
_EXECUTED = {".py", ".pyc", ".so"}
_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_LARGEST_NUMBER = 2**24  # in an architecture's configuration; channels, sizes and steps are far below


def check_folder(folder: Path) -> dict[str, Description]:
    """Return the descriptions of the Halftone components of a pipeline folder, by component; none for a float pipeline.

    Raises:
        ConfigError: not a pipeline folder.
        ArtifactError: a file is missing, damaged, foreign, newer than this program, or could execute code; the message
            names it.
    """
    if not (folder / INDEX).is_file():
        fix = "Name the folder of a whole pipeline, not of one component."
        raise ConfigError(str(folder), f"a diffusers pipeline ({INDEX})", "a folder without it", fix)
    found: dict[str, Description] = {}
    for component in _components(folder):
        file = folder / component / "config.json"
        config = read_json(file) if file.is_file() else {}
        method = _method(file, config)
        if method == METHOD:
            found[component] = _check_component(folder / component, config)
    if found:
        _refuse_code(folder)
    return found


def missing_files(folder: Path) -> list[str]:
    """Return the weights that a pipeline's folder lacks, by path inside it: all of a network's, or some of its shards."""
    found: list[str] = []
    if not (folder / INDEX).is_file():
        return found
    for component in _components(folder):
        place = folder / component
        present = {path.name for path in place.iterdir()}
        listed = {
            name
            for path in place.glob("*.index.json")
            for name in (read_json(path).get("weight_map") or {}).values()
            if isinstance(name, str)
        }
        found += [f"{component}/{name}" for name in sorted(listed - present)]
        # Schedulers and tokenizers have other configurations; whatever has this one has weights.
        whole = any(Path(name).suffix in {".safetensors", *_PICKLED} for name in present)
        if "config.json" in present and not listed and not whole:
            found.append(f"{component}/*.safetensors")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ArtifactError: it cannot be read, is absurdly large, or holds no JSON object.
    """
    try:
        if path.stat().st_size > _LONGEST_JSON:
            raise ArtifactError(str(path), f"at most {_LONGEST_JSON} bytes", "more")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(str(path), "a readable file", error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(str(path), "JSON", f"{error}"[:200] or "too many levels") from error
    if not isinstance(data, dict):
        raise ArtifactError(str(path), "a JSON object", type(data).__name__)
    return data


def _components(folder: Path) -> Iterator[str]:
    """Yield the names of the components that have folders, after looking whether each entry is an ordinary one."""
    index = read_json(folder / INDEX)
    if not isinstance(index.get("_class_name"), str):
        raise ArtifactError(str(folder / INDEX), "_class_name of an ordinary pipeline", "none, or custom code")
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list):
            continue
        # A name becomes a path: `../x` must not.
        ordinary = len(value) == 2 and all(part is None or isinstance(part, str) for part in value)
        if not ordinary or not name.isidentifier():
            raise ArtifactError(f"{folder / INDEX}: {name[:80]!r}", "a component's library and class", "something else")
        if value[0] is None:
            continue
        if not (folder / name).is_dir():
            raise ArtifactError(str(folder / name), f"a folder, as {INDEX} says", "none", AGAIN)
        yield name


def _method(file: Path, config: dict[str, Any]) -> str | None:
    """Return the quantization method that a component's configuration names, None for a float component."""
    data = config.get("quantization_config")
    if data is None:
        return None
    method = data.get("quant_method") if isinstance(data, dict) else None
    if not isinstance(method, str):
        raise ArtifactError(f"{file}: quantization_config", "an object with a quant_method", "none")
    if method != METHOD:
        from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as known

        # bitsandbytes is two entries there.
        if not any(name.startswith(method) for name in known):
            where, fix = f"{file}: quant_method", "Another program made this."
            raise ArtifactError(where, "one that this machine can load", repr(method[:80]), fix)
    return method


def _check_component(folder: Path, config: dict[str, Any]) -> Description:
    try:
        description = parse(config["quantization_config"])
    except ArtifactError as error:
        # Which of a pipeline's components: two may come from different versions.
        where = f"{folder / 'config.json'}: {error.where}"
        raise ArtifactError(where, error.expected, error.got, error.fix) from error
    # transformers does not write a class's name so.
    tensors = _check_weights(folder, _WEIGHTS if "_class_name" in config else _TRANSFORMERS_WEIGHTS)
    for path in description.schemes:
        stored = tensors.get(f"{path}.weight")
        if stored is None or stored.dtype != "U8":
            got = "none" if stored is None else stored.dtype
            fix = (
                "config.json names a layer that the weights do not have: they are of another model."
                if stored is None
                else ""
            )
            raise ArtifactError(f"{folder}: tensor '{path[:200]}.weight'", "packed codes (U8)", got, fix)
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    _check_plausible(folder / "config.json", plain, len(tensors))
    return description


def _check_weights(folder: Path, weights: str) -> dict[str, Stored]:
    """Return the tensors of all files of ``weights`` in ``folder``."""
    for file in folder.glob(f"{weights}*.index*.json"):
        shards = read_json(file).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise ArtifactError(str(file), "a weight_map of file names", "something else")
        for shard in set(shards.values()):
            if Path(shard).name != shard or not (folder / shard).is_file():
                raise ArtifactError(str(file), f"files of {folder.name}", f"{shard[:200]!r}, which is not there", AGAIN)
    files = sorted(folder.glob(f"{weights}*.safetensors"))
    if not files:
        pickled = sorted(file.name for file in folder.glob("*") if file.suffix in _PICKLED)
        got = f"{pickled[0]}: pickle is not read" if pickled else "none"
        raise ArtifactError(str(folder), f"{weights}.safetensors", got, "" if pickled else AGAIN)
    tensors: dict[str, Stored] = {}
    for file in files:
        tensors |= read_header(file)
    return tensors


def _refuse_code(folder: Path) -> None:
    for file in sorted(folder.rglob("*")):
        if file.suffix in _PICKLED | _EXECUTED:
            got = "pickle" if file.suffix in _PICKLED else "code"
            raise ArtifactError(str(file), "tensors and JSON only", got, "Nothing in an artifact is executed.")


def _check_plausible(file: Path, config: dict[str, Any], tensors: int) -> None:
    """Refuse numbers that would only make the model's constructor run for ever or fail obscurely."""
    pending: list[tuple[str, Any]] = list(config.items())
    while pending:
        key, value = pending.pop()
        if isinstance(value, list):
            pending += [(key, entry) for entry in value]
        elif isinstance(value, dict):
            pending += list(value.items())
        elif type(value) is int:
            # Every layer has a tensor of its own.
            limit = tensors if "layers" in key else _LARGEST_NUMBER
            if abs(value) > limit:
                raise ArtifactError(f"{file}: {key[:80]}", f"at most {limit}", "more")
