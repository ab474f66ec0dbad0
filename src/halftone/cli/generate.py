"""``halftone generate``: pictures from a float or quantized pipeline."""

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halftone.cli.options import (
    Dtype,
    Engine,
    Guidance,
    Json,
    Model,
    Negative,
    Overwrite,
    Prompts,
    Seed,
    Steps,
    Weights,
    check_dtype,
)
from halftone.cli.output import emit, working
from halftone.foundation.errors import ConfigError
from halftone.foundation.files import check_output_file
from halftone.foundation.prompt_file import read_prompts

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

_GAP = 2  # pixels between pictures
_SMALL = 64  # pictures below this side are enlarged to it: a 32-pixel garment is a stamp on today's screens
_LINE, _LETTER = 14, 6  # pixels of a line of a label, and of a letter in the built-in font
_LINES = 3  # of a label


def command(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file to write, a grid of all pictures.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Number of pictures.")] = 16,
    prompt: Annotated[str | None, typer.Option(help="Text, for pipelines that take one.")] = None,
    prompts: Prompts = None,
    negative: Negative = None,
    guidance: Guidance = None,
    label: Annotated[int | None, typer.Option(help="Class number, for pipelines that take one.")] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH[=SCALE]",
            help="LoRA adapter, a file, a folder or zoo:NAME; repeatable. Quantized layers take them too.",
        ),
    ] = None,
    steps: Steps = 50,
    seed: Seed = 0,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at a time; does not change them.")] = 16,
    engine: Engine = None,
    weights: Weights = "ready",
    dtype: Dtype = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Generate pictures and write them as one PNG.

    Equal seeds start from equal noise, whatever the model: compare a quantized model with its original picture by picture.

    \b
    Examples:
      halftone generate out -n 16 --seed 7 -o quantized.png
      halftone generate zoo:fashion-unet -n 16 --seed 7 -o float.png
      halftone generate my-model --prompt "a lighthouse at dusk" --engine simulate -o lighthouse.png
      halftone generate zoo:emoji-sd --prompt "red heart" --guidance 5 --lora zoo:emoji-style-lora -o printed.png
      halftone generate out --prompts captions.txt --guidance 5 --negative blurry --lora style.safetensors=0.8 -o styled.png
    """
    if output.suffix.lower() != ".png":
        raise ConfigError(f"-o {output}", "a name that ends in .png", output.suffix or "no ending")
    check_output_file(output, overwrite)
    if prompt is not None and prompts:
        raise ConfigError("--prompt", "one of --prompt and --prompts", "both")
    check_dtype(dtype)
    texts = [prompt] if prompt is not None else read_prompts(prompts) if prompts else None
    with working() as progress:
        import io

        from halftone.cli import models
        from halftone.cli.adapters import use_loras
        from halftone.evaluate.sample import sample
        from halftone.foundation.files import write_atomically

        pipe = models.open_to_sample(model, device, weights, dtype)
        each = models.conditions(pipe, count, texts, label)
        call = models.options(pipe, negative_prompt=negative, guidance_scale=guidance)
        notes = models.use_engine(pipe, engine, models.rows_of(pipe, min(batch, count), guidance))
        notes += models.cut_off(pipe, texts, negative) + models.unlike_calibration(pipe, steps, guidance)
        for sentence in notes:
            progress.say(f"note: {sentence}")
        use_loras(pipe, lora or [])
        drawn = sample(pipe, count, steps, seed, batch, progress, each, **call)
        picture = grid(drawn.images, [str(text) for text in each.get("prompt", [])])
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        write_atomically(output, buffer.getvalue())
    facts = {"output": str(output), "images": count, "seconds": drawn.seconds, "protocol": drawn.protocol}
    rate = drawn.seconds / count
    emit(facts, json, lambda: f"{output}: {count} pictures, {steps} steps, seed {seed}, {rate:.2f} s each")


def grid(images: "np.ndarray", labels: list[str] | None = None) -> "Image":
    """Return ``images`` ``[N, C, H, W]`` in [0, 1] as one picture, in rows, with their labels below them if there are any.

    Raises:
        ConfigError: not images of one or three channels.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ConfigError("generate", "images of one or three channels", f"an array {list(images.shape)}")
    count, channels, height, width = images.shape
    factor = max(1, math.ceil(_SMALL / max(height, width)))
    columns = math.ceil(math.sqrt(count))
    captions = [_lines(label, (width * factor + _GAP) // _LETTER) for label in labels or []]
    caption = _LINE * max(map(len, captions), default=0) + _GAP if labels else 0
    cell = (width * factor + _GAP, height * factor + _GAP + caption)
    rows = math.ceil(count / columns)
    canvas = Image.new("L" if channels == 1 else "RGB", (columns * cell[0] + _GAP, rows * cell[1] + _GAP), "white")
    pixels = (images.clip(0, 1) * 255).round().astype(np.uint8)
    for number, pixel in enumerate(pixels):
        left, top = _GAP + number % columns * cell[0], _GAP + number // columns * cell[1]
        picture = Image.fromarray(pixel[0] if channels == 1 else np.moveaxis(pixel, 0, -1))
        picture = picture.resize((width * factor, height * factor), Image.Resampling.NEAREST)
        canvas.paste(picture, (left, top))
        for line, text in enumerate(captions[number] if labels else ()):
            ImageDraw.Draw(canvas).text((left, top + height * factor + 1 + line * _LINE), text, fill="black")
    return canvas


def _lines(label: str, letters: int) -> list[str]:
    """Return a label in lines of so many letters, in those that the built-in font has."""
    known = label.encode("latin-1", "replace").decode("latin-1")
    return textwrap.wrap(known, max(letters, 4), max_lines=_LINES, placeholder="...")
