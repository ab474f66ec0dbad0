"""Writing that either happens wholly or not at all, with errors that say what to do."""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from halftone.foundation.errors import OutputError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write ``content`` (text as UTF-8) to ``path``: a reader sees the old file or the new one, never a part.

    Missing parent folders are made.

    Raises:
        OutputError: disk full, no permission, or the path cannot be a file.
    """
    path = Path(path)
    partial = _sibling(path, "partial")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; it becomes ``path`` if the block ends well, and is removed if it does not.

    Refusals come before the block runs, so no work is lost to them. With ``overwrite`` an existing folder stays in
    place until the new one is whole.

    Raises:
        OutputError: ``path`` is a file, or a folder that is not empty and may not be overwritten; the disk is full; no
            permission.
    """
    path = Path(path).resolve()
    with _explained(path):
        _refuse(path, overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        stage = _sibling(path, "partial")
        stage.mkdir()
    try:
        yield stage
    except BaseException as error:
        shutil.rmtree(stage, ignore_errors=True)
        reason = _reason(error)
        # A permission error of the block may be about a file it reads: only those about the stage are ours to explain.
        if reason and (reason == _DISK_FULL or str(stage) in str(error)):
            raise OutputError(str(path), *reason) from error
        raise
    try:
        _refuse(path, overwrite)  # again: another run may have put something here meanwhile
        _put_in_place(stage, path)
    except (OSError, OutputError) as error:
        # The content is whole and may have taken hours: it is kept.
        fix = f"It is kept in {stage}."
        raise OutputError(str(path), "to put the finished folder here", str(error), fix) from error


def check_output(path: str | Path, overwrite: bool = False) -> None:
    """Raise the error with which ``staged_folder`` would refuse ``path``, for work to be refused before it begins.

    Raises:
        OutputError: ``path`` is a file or below one, or a folder that is not empty and may not be overwritten.
    """
    path = Path(path).resolve()
    with _explained(path):
        _refuse(path, overwrite)


def check_output_file(path: str | Path, overwrite: bool = False) -> None:
    """Refuse a file that may not be written, for work to be refused before it begins.

    Raises:
        OutputError: ``path`` is a folder, below a file, or a file that may not be overwritten.
    """
    path = Path(path).resolve()
    with _explained(path):
        _refuse_below_file(path)
        if path.is_dir() or (path.exists() and not overwrite):
            fix = "Choose another path" + (" or pass --overwrite." if path.is_file() else ".")
            raise OutputError(str(path), "a new file", "a folder" if path.is_dir() else "one that exists", fix)


def write_failure(error: BaseException, path: str | Path) -> OutputError | None:
    """Return the error to show where ``error`` means a full disk or a missing permission at ``path``, else None."""
    reason = _reason(error)
    return OutputError(str(path), *reason) if reason else None


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of the file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_below_file(path: Path) -> None:
    there = next((parent for parent in path.parents if parent.exists()), None)
    if there is not None and not there.is_dir():
        raise OutputError(str(path), "a path below folders", f"{there}, a file", "Choose another path.")


def _refuse(path: Path, overwrite: bool) -> None:
    _refuse_below_file(path)
    if not path.exists():
        return
    if not path.is_dir():
        raise OutputError(str(path), "a folder", "a file", "Choose another path.")
    if not any(path.iterdir()):
        return
    if not overwrite:
        fix = "Choose another path, or pass --overwrite (overwrite=True) to replace it."
        raise OutputError(str(path), "a new or empty folder", "one that holds files", fix)
    for precious in (Path.cwd(), Path.home()):
        if precious.resolve().is_relative_to(path):
            got = f"one that holds {precious}"
            raise OutputError(str(path), "a folder that may be deleted", got, "Choose another path.")


def _put_in_place(stage: Path, path: Path) -> None:
    if not path.exists():
        stage.rename(path)
        return
    old = _sibling(path, "old")
    path.rename(old)
    try:
        stage.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sibling(path: Path, kind: str) -> Path:
    # Beside it, because a rename is atomic within one file system only; random, because two runs may aim at one path.
    return path.with_name(f".{path.name}.{kind}-{secrets.token_hex(4)}")


_DISK_FULL = ("room on the disk", "none left", "Free some space or choose another path.")


def _reason(error: BaseException) -> tuple[str, str, str] | None:
    """Return (expected, got, fix) when ``error`` means a full disk or a missing permission."""
    number = error.errno if isinstance(error, OSError) else None
    # Compiled writers (safetensors) report a full disk as an error of their own, with the system's text in it.
    if number in _FULL or os.strerror(errno.ENOSPC) in str(error):
        return _DISK_FULL
    if number in _FORBIDDEN or os.strerror(errno.EACCES) in str(error):
        return ("permission to write", "none", "Change the permissions or choose another path.")
    return None


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block into an ``OutputError`` about ``path``."""
    try:
        yield
    except OSError as error:
        reason = _reason(error) or ("to write here", error.strerror or str(error), "Choose another path.")
        raise OutputError(str(path), *reason) from error


def private_cache(name: str) -> Path | None:
    """Return the folder ``name`` of this user's cache, made if it is missing: below ``$XDG_CACHE_HOME`` or ``~/.cache``.

    None where there is none that only this user can write to: what is found there may be run.
    """
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(root) / "halftone" / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
    except (OSError, RuntimeError):  # no home
        return None
    mine = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    return folder if mine and not found.st_mode & 0o022 and os.access(folder, os.W_OK) else None


def text_digest(text: str) -> str:
    """Return the SHA-256 of ``text`` in UTF-8, as hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def label(source: str) -> str:
    """Return what to call the model in a file that may be passed on: folders of this machine are nobody's business.

    >>> label("zoo:fashion-unet"), label("owner/name"), label("/home/me/models/mine")
    ('zoo:fashion-unet', 'owner/name', 'mine')
    """
    return Path(source).resolve().name if Path(source).exists() or Path(source).is_absolute() else source
