"""Files and folders appear whole or not at all."""

import errno
import hashlib
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from halftone.foundation.errors import OutputError
from halftone.foundation.files import sha256_of, staged_folder, write_atomically


def fails_with(number: int):
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_bytes_and_text_are_written_and_parents_made(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    write_atomically(target, "ä")
    assert target.read_bytes() == "ä".encode()
    write_atomically(target, b"\x00")
    assert target.read_bytes() == b"\x00"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "room on the disk"), (errno.EACCES, "permission"), (errno.EIO, "Input/output")]
)
def test_a_failed_write_leaves_the_old_file_alone_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    monkeypatch.setattr(os, "fsync", fails_with(number))
    with pytest.raises(OutputError, match=words):
        write_atomically(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_in_the_way_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_atomically(tmp_path, "x")


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_appears_at_success(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "deep" / "out"
    if exists:
        target.mkdir(parents=True)
    with staged_folder(target) as stage:
        (stage / "a").write_text("1")
        assert not (target / "a").exists()
        assert stage.parent == target.parent
    assert [path.name for path in target.parent.iterdir()] == ["out"]
    assert (target / "a").read_text() == "1"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_nothing_is_left_after_a_failure(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), staged_folder(tmp_path / "out") as stage:
        (stage / "a").write_text("1")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("")
    with pytest.raises(OutputError, match="--overwrite"), staged_folder(tmp_path):
        pytest.fail("the block must not run")


def test_a_file_in_the_way_is_refused_even_with_overwrite(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("precious")
    with pytest.raises(OutputError, match="a folder"), staged_folder(target, overwrite=True):
        pytest.fail("the block must not run")
    assert target.read_text() == "precious"


def test_overwrite_replaces_the_whole_folder_and_only_at_success(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("")
    with pytest.raises(ValueError), staged_folder(target, overwrite=True):
        raise ValueError
    assert (target / "old").exists()
    with staged_folder(target, overwrite=True) as stage:
        (stage / "new").write_text("")
        assert (target / "old").exists()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("place", [".", ".."])
def test_the_folder_that_one_works_in_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file").write_text("")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputError, match="may be deleted"), staged_folder(place, overwrite=True):
        pytest.fail("the block must not run")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_inside_the_block_is_explained(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OutputError, match="room on the disk"), staged_folder(tmp_path / "out"):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_only_permission_errors_about_the_folder_are_explained(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="permission"), staged_folder(tmp_path / "out") as stage:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(stage / "a"))
    with pytest.raises(PermissionError), staged_folder(tmp_path / "out"):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/some/input")


def test_finished_work_is_kept_when_it_cannot_be_put_in_place(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(OutputError, match="It is kept in") as caught, staged_folder(target) as stage:
        (stage / "a").write_text("1")
        target.write_text("a file came between")
    assert (stage / "a").exists()
    assert str(stage) in str(caught.value)


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()
