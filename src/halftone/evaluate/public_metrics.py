"""Measures that need weights which do not ship: FID, LPIPS and CLIP score, each where its file is at hand.

The networks come as they are published, so that numbers compare with others': InceptionV3 of 2015 and VGG16 with LPIPS's heads as
TorchScript programs (NVIDIA, StyleGAN2-ADA), CLIP as a folder of transformers. A TorchScript file is a program: name only files
that you trust.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from halftone.evaluate.frechet import Statistics, accumulate, distance, statistics
from halftone.evaluate.paired import Interval, interval
from halftone.foundation.errors import ArtifactError, ConfigError
from halftone.foundation.files import sha256_of

INCEPTION, VGG, CLIP = "inception-2015-12-05.pt", "vgg16.pt", "clip"
_BATCH = 32
_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class Fid:
    """The Fréchet distance in InceptionV3's 2048 features (Heusel et al., NeurIPS 2017, arXiv:1706.08500).

    It depends on the number of samples, and below some ten thousand of them compares with rows of as many only.

    Attributes:
        to_float: of the samples to the float model's; None where there are none.
        to_real, float_to_real: of either to the real pictures; None without real pictures.
        floor: of as many real pictures to all of them, the least that can be expected; None where there are not more of them.
        samples, real: how many pictures there were.
        network_sha256: of the file.
    """

    to_float: float | None
    to_real: float | None
    float_to_real: float | None
    floor: float | None
    samples: int
    real: int
    network_sha256: str


@dataclass(frozen=True)
class PublicMetrics:
    """What the public weights at hand give; ``None`` for what cannot be had, and ``missing`` says why.

    Attributes:
        lpips: distance to the float model's picture from the same noise (Zhang et al., CVPR 2018, arXiv:1801.03924; VGG16).
        clip, float_clip: 100 times the cosine between picture and prompt, negative ones as 0 (arXiv:2104.08718).
    """

    fid: Fid | None
    lpips: Interval | None
    clip: Interval | None
    float_clip: Interval | None
    missing: tuple[str, ...]


def check(folder: Path | None, real: Path | None) -> None:
    """Open what ``public_metrics`` will need, so that a damaged file is found before the images are drawn; raises as it does."""
    for name in (INCEPTION, VGG):
        if folder is not None and (folder / name).exists():
            _program(folder / name)
    if folder is not None and (folder / CLIP).exists():
        _clip(folder / CLIP)
    if real is not None:
        _files(real)


def public_metrics(
    images: np.ndarray,
    against: np.ndarray | None = None,
    prompts: Sequence[str] | None = None,
    folder: Path | None = None,
    real: Path | None = None,
) -> PublicMetrics:
    """Return what the weights in ``folder`` can say about ``images`` ``[N, 1 or 3, H, W]`` in [0, 1].

    Args:
        against: the float model's images from the same noise.
        prompts: one for each image.
        folder: holds ``inception-2015-12-05.pt``, ``vgg16.pt``, ``clip/``, or some of them; None has nothing.
        real: a folder of pictures, which are cropped to the middle and scaled to the images' size.

    Raises:
        ArtifactError: a file is damaged or another network.
        ConfigError: ``real`` holds no pictures.
    """
    missing: list[str] = []

    def there(file: str, what: str) -> Path | None:
        found = None if folder is None else folder / file
        if found is not None and found.exists():
            return found
        missing.append(f"no {what}: it needs {file}" + (f", which {folder} lacks" if folder else ""))
        return None

    fid = lpips = clip = float_clip = None
    if against is None and real is None:
        missing.append("no FID: there is nothing to compare with, neither real pictures nor a float model's")
    elif (file := there(INCEPTION, "FID")) is not None:
        fid = _fid(images, against, real, file)
    if against is None:
        missing.append("no LPIPS: it is between pairs, and there is no float model")
    elif (file := there(VGG, "LPIPS")) is not None:
        lpips = interval(_lpips(images, against, file), seed=0)
    if prompts is None:
        missing.append("no CLIP score: there are no prompts")
    elif (file := there(CLIP, "CLIP score")) is not None:
        look = _clip(file)
        clip = interval(look(images, prompts), seed=0)
        float_clip = None if against is None else interval(look(against, prompts), seed=0)
    return PublicMetrics(fid, lpips, clip, float_clip, tuple(missing))


# InceptionV3.


def _fid(images: np.ndarray, against: np.ndarray | None, real: Path | None, file: Path) -> Fid:
    network = _program(file)

    def features(parts: Iterator[torch.Tensor]) -> Statistics:
        return accumulate(_called(network, part, file, return_features=True) for part in parts)

    mine = features(_bytes(images))
    theirs = None if against is None else features(_bytes(against))
    to_real = float_to_real = floor = None
    count = 0
    if real is not None:
        size = (images.shape[-1], images.shape[-2])
        seen = np.concatenate([_called(network, part, file, return_features=True) for part in pictures(real, size)])
        count, whole = len(seen), statistics(seen)
        to_real = distance(mine, whole)
        float_to_real = None if theirs is None else distance(theirs, whole)
        if len(images) < count:
            chosen = np.random.default_rng(0).choice(count, len(images), replace=False)
            floor = distance(statistics(seen[chosen]), whole)
    to_float = None if theirs is None else distance(mine, theirs)
    return Fid(to_float, to_real, float_to_real, floor, len(images), count, sha256_of(file))


def pictures(folder: Path, size: tuple[int, int]) -> Iterator[torch.Tensor]:
    """Yield the pictures in ``folder`` as uint8 ``[n, 3, H, W]``, cropped to the middle and scaled to ``size`` (width, height).

    Raises:
        ConfigError: it is no folder, holds no picture, or a damaged one.
    """
    files = _files(folder)
    for start in range(0, len(files), _BATCH):
        rows = []
        for file in files[start : start + _BATCH]:
            try:
                with Image.open(file) as picture:
                    fitted = ImageOps.fit(picture.convert("RGB"), size, Image.Resampling.LANCZOS)
            except OSError as error:  # Pillow's own are of this kind
                raise ConfigError(str(file), "a picture", f"{type(error).__name__}: {error}"[:200]) from error
            rows.append(torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1))
        yield torch.stack(rows)


def _files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _PICTURES) if folder.is_dir() else []
    if len(files) < 2:
        expected = "a folder of pictures (" + ", ".join(sorted(_PICTURES)) + ")"
        raise ConfigError(str(folder), expected, f"{len(files)} of them" if folder.is_dir() else "no folder")
    return files


# VGG16 with LPIPS's heads.


def _lpips(images: np.ndarray, against: np.ndarray, file: Path) -> np.ndarray:
    """Return the distance of each pair, float64 ``[N]``: the squared distance of what the program puts out for LPIPS."""
    network, found = _program(file), []
    how = {"resize_images": False, "return_lpips": True}
    for one, other in zip(_bytes(images), _bytes(against), strict=True):
        left, right = (_called(network, each.float(), file, **how) for each in (one, other))
        found.append(np.square(left - right).sum(axis=1))
    return np.concatenate(found)


# CLIP.


def _clip(folder: Path) -> Callable[[np.ndarray, Sequence[str]], np.ndarray]:
    """Return what gives 100 times the cosine of each picture and its prompt, at least 0: float64 ``[N]``."""
    from transformers import CLIPModel, CLIPProcessor

    try:
        model, loaded = CLIPModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever transformers makes of a folder that is something else
        got = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        raise ArtifactError(str(folder), "a CLIP model of transformers with its processor", got) from error

    if loaded["missing_keys"]:
        # transformers fills them with random numbers, and a score of those would look like any other.
        got = f"none for {', '.join(sorted(loaded['missing_keys'])[:3])} ..."
        raise ArtifactError(str(folder), "weights of every layer", got)

    model.eval()

    @torch.no_grad()
    def look(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        found, start = [], 0
        for part in _bytes(images):
            texts = list(prompts[start : start + len(part)])
            start += len(part)
            given = processor(
                text=texts,
                images=list(part.permute(0, 2, 3, 1).numpy()),
                return_tensors="pt",
                padding=True,
                truncation=True,
            )
            out = model(**given)
            cosine = torch.nn.functional.cosine_similarity(out.image_embeds.double(), out.text_embeds.double())
            found.append(100 * cosine.clamp(min=0).numpy())
        return np.concatenate(found)

    return look


# What they share.


def _bytes(images: np.ndarray) -> Iterator[torch.Tensor]:
    """Yield images ``[N, 1 or 3, H, W]`` in [0, 1] as colour, uint8, a batch at a time."""
    for start in range(0, len(images), _BATCH):
        part = torch.as_tensor(images[start : start + _BATCH])
        yield (part.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


def _program(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # PyTorch has a successor; these files, which everybody measures with, are in the older form.
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(str(file), map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise ArtifactError(str(file), "a TorchScript program", str(error).strip().splitlines()[0][:200]) from error


@torch.no_grad()
def _called(network: Any, images: torch.Tensor, file: Path, **how: bool) -> np.ndarray:
    """Return what the program makes of ``images``, float64 ``[n, D]``."""
    try:
        found = network(images, **how)
    except RuntimeError as error:
        got = str(error).strip().splitlines()[-1][:200]
        raise ArtifactError(str(file), f"a program that takes images and {', '.join(how)}", got) from error
    if not isinstance(found, torch.Tensor) or found.ndim != 2 or len(found) != len(images):
        raise ArtifactError(str(file), f"[{len(images)}, features]", str(list(getattr(found, "shape", []))))
    return np.asarray(found.double())
