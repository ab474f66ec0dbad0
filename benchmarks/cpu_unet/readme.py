"""The README's table: the roads that a user chooses between, at both sizes."""

from typing import Any

from benchmarks.cpu_unet.contenders import BASELINE, BY_NAME, RIVAL
from benchmarks.markdown import table

BLOCK = "cpu"
_FLOATS = (BASELINE, "torch-bf16-compiled", "openvino-bf16")
_ROADS = (*_FLOATS, RIVAL, "halftone-w8a8-attention", "halftone-w4a8-attention", "halftone-w4a8-packed")
_PIXELS = (256, 512)
Rows = dict[str, dict[str, Any]]


def block(sections: dict[str, Rows], model: str = "sd-1.5") -> str | None:
    """Return the table, None where a size has not been timed."""
    timed = [sections.get("latency", {}).get(f"{model}-{pixels}-b1") for pixels in _PIXELS]
    if not all(timed):
        return None
    found = [row["metrics"]["contenders"] for row in timed if row]
    machine = " and ".join(sorted({row["machine"]["processor"] for row in timed if row}))
    body = [_line(name, found, sections.get("footprint", {}), model) for name in _ROADS]
    head = ["runtime"]
    for pixels in _PIXELS:
        head += [f"{pixels} px, s", "× torch bf16", "× OpenVINO int8"]
    lines = table([*head, "peak, GB", "on disk, GB"], [line for line in body if line])
    note = (
        f"A call of the real 860-million-parameter U-Net on two threads of {machine}, batch 1; contenders take turns; peak memory "
        "at 256 px. Its weights are random: the table says nothing about pictures. Halftone's rows are nearest rounding; equal "
        "formats run equally fast, whichever method found the numbers. They are in bfloat16 between layers (`--dtype bfloat16`, "
        "`torch_dtype=torch.bfloat16`)" + _in_float32(found) + ". All other runtimes, errors and batch 2 are in [the "
        "study](docs/results/cpu-unet.md), made by `python -m benchmarks.cpu_unet run` and `render`."
    )
    return "\n".join([*lines, note, ""])


def _in_float32(found: list[Rows]) -> str:
    """Return how much faster than the rival the one is that computes in float32 between layers, which is the default."""
    own = [contenders.get("halftone-w8a8", {}).get("faster_than", {}).get(RIVAL) for contenders in found]
    if not all(own):
        return ""
    values = " and ".join(f"{each['value']:.2f}" for each in own if each)
    return (
        f"; in float32, which is the default, and with attention in float, W8A8 is {values} × as fast as OpenVINO int8"
    )


def _line(name: str, found: list[Rows], footprints: Rows, model: str) -> list[str] | None:
    if any("median" not in contenders.get(name, {}) for contenders in found):
        return None
    cells = [BY_NAME[name].title]
    for contenders in found:
        cells.append(f"{contenders[name]['median']:.2f}")
        faster = contenders[name]["faster_than"]
        cells += [f"{faster[anchor]['value']:.2f}" if anchor in faster else "-" for anchor in (BASELINE, RIVAL)]
    facts = footprints.get(f"{model}-{_PIXELS[0]}-b1-{name}", {}).get("metrics", {})
    if "memory" not in facts:
        return [*cells, "-", "-"]
    return [*cells, *(f"{size / 1e9:.2f}" for size in (facts["memory"]["peak"], facts["disk_bytes"]))]
