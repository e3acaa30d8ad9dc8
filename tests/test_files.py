import errno
import os
from hashlib import sha256
from pathlib import Path

import pytest

from m2m.errors import UserError
from m2m.files import (
    code_digest,
    file_digest,
    folder_digest,
    new_file,
    reading_foundation,
    write_atomically,
    writing,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_written_file_is_all_there_is(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == {"file"}
    usual = tmp_path / "usual"
    usual.touch()
    assert path.stat().st_mode == usual.stat().st_mode


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def write_half() -> None:
        with new_file(path) as draft:
            draft.write_bytes(b"half of the n")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"file"}


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "permission denied")],
)
def test_what_a_disk_refuses_is_said_in_one_line(
    number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match=words) as caught:
        write_atomically(path, b"new")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"file"}


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file/below: its folder is a file"):
        write_atomically(tmp_path / "file" / "below", b"")


def test_what_is_no_refusal_of_the_disk_passes_through(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError), writing(tmp_path / "file"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_a_file_digest_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert file_digest(tmp_path / "file") == sha256(b"content").hexdigest()


def test_a_folder_digest_sees_names_and_contents_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    write_atomically(folder / "unet" / "weights", b"1")
    write_atomically(folder / "index", b"2")
    digest = folder_digest(folder)

    same = tmp_path / "b"
    write_atomically(same / "index", b"2")
    write_atomically(same / "unet" / "weights", b"1")
    write_atomically(same / ".cache" / "tool", b"a time stamp")
    os.utime(same / "index", (0, 0))
    assert folder_digest(same) == digest

    write_atomically(same / "index", b"3")
    assert folder_digest(same) != digest
    (folder / "index").rename(folder / "Index")
    assert folder_digest(folder) != digest


def test_a_folder_without_files_has_no_digest(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="no such folder, or nothing in it"):
            folder_digest(folder)


def test_a_digest_of_code_sees_every_source_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("drawing/__init__.py", "drawing/inks/__init__.py", "drawing/inks/red.py", "paper.py"):
        write_atomically(tmp_path / name, b"")
    drawing, both = code_digest("drawing"), code_digest("drawing", "paper")
    assert drawing != both == code_digest("drawing", "paper")

    (tmp_path / "drawing" / "__pycache__").mkdir()
    (tmp_path / "drawing" / "__pycache__" / "red.pyc").touch()
    assert code_digest("drawing") == drawing
    write_atomically(tmp_path / "drawing/inks/red.py", b"shade = 1")
    assert code_digest("drawing") != drawing


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that takes in no other, as /proc is")
def test_a_place_that_takes_no_folder_is_named() -> None:
    with pytest.raises(UserError, match="no folder can be made there"):
        write_atomically(Path("/proc/nowhere/file"), b"")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AttributeError("'list' object has no attribute 'items'"), "'list' object has no attribute 'items'"),
        (RuntimeError("\nError(s) in loading:\n\tMissing key"), "Error(s) in loading:"),
        (KeyError(), "KeyError"),
    ],
)
def test_what_a_damaged_folder_raises_is_one_line(error: Exception, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught, reading_foundation(tmp_path):
        raise error
    assert str(caught.value).startswith(f"{tmp_path}: incomplete or damaged ({reason}); restore it from git or run")
    with pytest.raises(UserError, match=r"^known$"), reading_foundation(tmp_path):
        raise UserError("known")
