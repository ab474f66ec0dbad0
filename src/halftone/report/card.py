"""The model card of a quantized pipeline: the README.md of its folder, ready to upload to the Hugging Face hub."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from halftone.artifact.folder import INDEX, read_json
from halftone.foundation.errors import ConfigError
from halftone.foundation.files import text_digest, write_atomically
from halftone.report.layers import Layer, Model, read_model
from halftone.report.markdown import table
from halftone.report.pieces import COMMANDS, QUANTIZED, Pieces, mapping, number, read_pieces
from halftone.report.sections import bench_rows

CARD = "README.md"
# What follows the text: whose it is. A card that somebody has edited no longer has its digest, and is left alone.
_SEAL = "<!-- made by halftone, sha256 of the text above: {} -->\n"
_SEALED = re.compile(r"\n<!-- made by halftone, sha256 of the text above: ([0-9a-f]{64}) -->\n\Z")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# By parts of a pipeline's class name, the first that occurs. Of others the card names no task.
_TASKS = {
    "Inpaint": "image-to-image",
    "Img2Img": "image-to-image",
    "ImageToVideo": "image-to-video",
    **dict.fromkeys(("Wan", "CogVideoX", "LTX", "HunyuanVideo"), "text-to-video"),
    **dict.fromkeys(
        ("StableDiffusion", "PixArt", "Flux", "Sana", "AuraFlow", "HunyuanDiT", "QwenImage", "Lumina"), "text-to-image"
    ),
    **dict.fromkeys(("DDIM", "DDPM"), "unconditional-image-generation"),
}


def write_card(folder: Path) -> Path | None:
    """Write the card of the quantized model in ``folder`` and return its file.

    None, and nothing written, where somebody has written or edited one, or where ``halftone quantize`` left no record.

    Raises:
        ArtifactError: a record or the model is damaged.
        OutputError: the card cannot be written.
    """
    file = folder / CARD
    if not (folder / QUANTIZED).is_file():
        return None
    if file.exists() and not _ours(file.read_text(encoding="utf-8", errors="replace")):
        return None
    text = card(read_pieces(folder))
    write_atomically(file, text + "\n" + _SEAL.format(text_digest(text)))
    return file


def checked_base_model(name: str) -> str:
    """Return ``name``, or raise a ConfigError where it is no id of the hub."""
    if not _HUB_ID.fullmatch(name):
        raise ConfigError("base model", "an id of the hub, OWNER/NAME", f"'{name}'")
    return name


def _ours(text: str) -> bool:
    seal = _SEALED.search(text)
    return seal is not None and text_digest(text[: seal.start()]) == seal[1]


def card(pieces: Pieces) -> str:
    """Return the card as Markdown, with the hub's front matter; what has not been measured names the command that does."""
    model, recipe = read_model(pieces), mapping(pieces.quantize, "recipe")
    title = str(recipe.get("title") or recipe.get("name") or "quantized")
    base = str(pieces.quantize.get("base_model") or pieces.quantize.get("model") or "")
    name = base.rstrip("/").rpartition("/")[2].removeprefix("zoo:") or pieces.folder.resolve().name
    parts = [
        f"# {name}, {model.bits or 'quantized'}",
        f"{title}. Made with Halftone {_producer(pieces)}from `{base or 'a float model'}`, budget "
        f"`{pieces.quantize.get('budget')}`, seed {pieces.quantize.get('seed')}. Method: {recipe.get('paper') or 'not said'}.",
        "## Use",
        _snippet(),
        "## What is quantized",
        *_scheme(model),
        _inside(pieces),
        _also(pieces),
        "## Size",
        _size(model),
        "## Calibration",
        _calibration(pieces),
        "## Quality",
        *_quality(pieces),
        "## Speed",
        *_speed(pieces),
    ]
    return f"---\n{_front_matter(pieces, model, base)}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(pieces: Pieces, model: Model, base: str) -> str:
    index = pieces.folder / INDEX
    kind = str(read_json(index).get("_class_name", "")) if index.is_file() else ""
    task = next((task for part, task in _TASKS.items() if part in kind), None)
    recipe = mapping(pieces.quantize, "recipe").get("name")
    tags = ["halftone", "quantized", *([model.bits.lower()] if model.bits else []), *([recipe] if recipe else [])]
    data = ModelCardData(library_name="diffusers", pipeline_tag=task, tags=tags)
    if _HUB_ID.fullmatch(base):
        # Only the hub's own models can be named: a folder or a zoo model means nothing there.
        data.base_model, data["base_model_relation"] = base, "quantized"
    return str(data.to_yaml())


def _producer(pieces: Pieces) -> str:
    for file in sorted(pieces.folder.glob("*/config.json")):
        producer = mapping(read_json(file), "quantization_config", "producer")
        if producer.get("version"):
            return f"{producer['version']} "
    return ""


def _snippet() -> str:
    lines = [
        "```python",
        "import halftone  # teaches diffusers to read these weights",
        "from diffusers import DiffusionPipeline",
        "",
        'pipe = DiffusionPipeline.from_pretrained("THIS_FOLDER")',
        "```",
    ]
    return "\n".join(lines)


def _scheme(model: Model) -> list[str]:
    groups = Counter((layer.bits, bool(len(layer.parts) > 1)) for layer in model.layers if not layer.kept)
    rows = [
        {"bits": bits + (", split shortcut" if split else ""), "layers": count}
        for (bits, split), count in sorted(groups.items(), key=lambda item: -item[1])
    ]
    kept = [layer for layer in model.layers if layer.kept]
    said = [f"Kept in float: {_listed(kept)}."] if kept else []
    said += [f"- {sentence}" for sentence in model.left_float]
    words = "`W4A8` is a 4-bit weight and an 8-bit input; norms and biases are float."
    return [table(rows, {"bits": "format", "layers": "layers"}) if rows else "", words, "\n".join(said)]


def _inside(pieces: Pieces) -> str:
    """Return sentences about what is quantized, or kept, inside a call: attention's operands, text tokens; "" for none."""
    sentences = []
    for file in sorted(pieces.folder.glob("*/config.json")):
        said = _inside_of(mapping(read_json(file), "quantization_config"))
        sentences += [f"- `{file.parent.name}`: {each}" for each in said]
    return "\n".join(sentences)


def _inside_of(said: dict[str, Any]) -> list[str]:
    operands = [spec for spec in mapping(said, "attention_operands").values() if isinstance(spec, dict)]
    kinds = Counter(
        ", ".join(f"{name} {mapping(spec, name)['format']}" for name in sorted(spec) if "format" in mapping(spec, name))
        for spec in operands
    )
    sentences = [
        f"{count} attention{_s(count)} with quantized operands ({kind})." for kind, count in kinds.items() if kind
    ]
    for group in mapping(said, "config_groups").values():
        kept, layers = mapping(group, "input_activations").get("keep"), mapping(group).get("targets")
        if kept and isinstance(layers, list):
            words = "the first text token" if kept == 1 else f"the first {kept} text tokens"
            sentences.append(f"{words} in float, in {len(layers)} layer{_s(len(layers))}.")
    return sentences


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _also(pieces: Pieces) -> str:
    """Return sentences about the components that were quantized beside the denoiser; "" for none."""
    sentences = []
    for name, report in mapping(pieces.quantize, "also").items():
        layers = [
            facts for facts in mapping(report, "layers").values() if isinstance(facts, dict) and not facts.get("kept")
        ]
        made = mapping(report, "recipe").get("title") or "another recipe"
        sentences.append(f"- `{name}` as well, {len(layers)} layers: {made}.")
    return "\n".join(sentences)


def _listed(layers: list[Layer]) -> str:
    names = [f"`{layer.path}`" for layer in layers]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _size(model: Model) -> str:
    if model.sizes is None:
        return "Not known: the folder holds no denoiser."
    total, elements = model.sizes.total, model.sizes.elements
    return (
        f"The denoiser has {total / 1e6:.2f} MB of tensors on disk; {4 * elements / 1e6:.2f} MB in float32, "
        f"{2 * elements / 1e6:.2f} MB in bfloat16." + _parts(model)
    )


def _parts(model: Model) -> str:
    """Return a table of the pipeline's networks; "" where the denoiser is the only one."""
    if len(model.parts) < 2:
        return ""
    rows = [
        {
            "name": f"`{part.name}`",
            "bits": part.bits,
            "disk": f"{part.sizes.total / 1e6:.2f}",
            "float": f"{4 * part.sizes.elements / 1e6:.2f}",
        }
        for part in model.parts
    ]
    columns = {"name": "component", "bits": "format", "disk": "MB on disk", "float": "MB in float32"}
    return "\n\n" + table(rows, columns)


def _calibration(pieces: Pieces) -> str:
    facts = mapping(pieces.quantize, "trajectory")
    if not facts:
        return "Without data."
    select = mapping(facts, "select").get("name", "not said")
    guidance = mapping(facts, "arguments").get("guidance_scale")
    guided = "" if guidance is None else f", guidance {guidance}"
    given = "".join(f"; {name}: {said}" for name, said in mapping(facts, "conditions").items())
    source = pieces.quantize.get("source")
    made_from = f" The float model's fingerprint is `{source[:16]}`." if isinstance(source, str) else ""
    return (
        f"{facts.get('samples')} calls of the float model's own sampling: {facts.get('scheduler')}, {facts.get('steps')} "
        f"steps, selection `{select}`, seed {facts.get('seed')}{guided}{given}.{made_from} Static activation ranges fit this "
        "sampler; another one, or far fewer steps, gives the denoiser other inputs."
    )


def _quality(pieces: Pieces) -> list[str]:
    record = pieces.evaluation
    paired, distribution = mapping(record, "paired"), mapping(record, "distribution")
    if not paired:
        # A distribution distance alone is no claim: a damaged model can have a better one.
        return [f"Not measured yet against the float model: `{COMMANDS['evaluation']}`."]
    how, rows = mapping(record, "protocol"), []
    for key, name in (("psnr", "PSNR to the float model, dB"), ("ssim", "SSIM"), ("latent_mse", "latent MSE")):
        value, low, high = (number(mapping(paired, key).get(each)) for each in ("value", "low", "high"))
        if value is not None and low is not None and high is not None:
            rows.append({"measure": name, "value": f"{value:.4g}", "range": f"{low:.4g} to {high:.4g}"})
    value, floor = number(distribution.get("value")), number(mapping(distribution, "floor").get("mean"))
    if value is not None and floor is not None:
        before = number(mapping(record, "float_distribution").get("value"))
        beside = ([f"float model {before:.4g}"] if before is not None else []) + [f"floor {floor:.4g}"]
        rows.append({"measure": str(distribution.get("name")), "value": f"{value:.4g}", "range": ", ".join(beside)})
    rows += _public(mapping(record, "public"))
    call = "".join(f", {name} {value!r}" for name, value in mapping(record, "call").items())
    call += f", {record['prompts']} prompts" if record.get("prompts") else ""
    words = (
        f"{how.get('samples')} samples, {how.get('scheduler')}, {how.get('steps')} steps, seed {how.get('seed')}{call}, engine "
        f"`{record.get('engine') or 'auto'}` in {how.get('dtype') or 'float32'}, against `{record.get('against')}` from the same "
        "noise."
    )
    return [table(rows, {"measure": "measure", "value": "value", "range": "95 % interval, or reference"}), words]


def _public(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return rows of what public weights gave."""
    fid, rows = mapping(found, "fid"), []
    for key, name in (("to_real", "FID, to real pictures"), ("to_float", "FID, to the float model's pictures")):
        value, floor = number(fid.get(key)), number(fid.get("floor"))
        if value is not None:
            beside = [f"float model {before:.4g}"] if (before := number(fid.get("float_to_real"))) is not None else []
            beside += [f"floor {floor:.4g}"] if floor is not None else []
            rows.append(
                {"measure": name, "value": f"{value:.4g}", "range": ", ".join(beside if key == "to_real" else [])}
            )
    for key, name in (
        ("lpips", "LPIPS (VGG16)"),
        ("clip", "CLIP score"),
        ("float_clip", "CLIP score of the float model"),
    ):
        value, low, high = (number(mapping(found, key).get(each)) for each in ("value", "low", "high"))
        if value is not None:
            rows.append({"measure": name, "value": f"{value:.4g}", "range": f"{low:.4g} to {high:.4g}"})
    return rows


def _speed(pieces: Pieces) -> list[str]:
    rows: list[dict[str, Any]] = []
    for row in bench_rows(pieces):
        ratios = {name: number(mapping(row, "speedup", name).get("value")) for name in ("bfloat16", "float32")}
        shown = {name: None if ratio is None else f"{ratio:.2f}" for name, ratio in ratios.items()}
        rows.append({"engine": row.get("name"), "ms": number(row.get("median")), **shown})
    if not rows:
        return [f"Not measured yet: `{COMMANDS['bench']}`."]
    how, machine = mapping(pieces.bench, "protocol"), mapping(pieces.bench, "machine")
    device = machine.get("cuda") or f"{machine.get('processor')}, {machine.get('threads')} threads"
    device += f", quantized in {how.get('dtype', 'float32')}"
    columns = {"engine": "engine", "ms": "ms a call", "bfloat16": "× bfloat16", "float32": "× float32"}
    words = f"One denoiser call, batch {how.get('batch')}, {how.get('rounds')} rounds on {device}, torch {machine.get('torch')}."
    return [table(rows, columns), words]
