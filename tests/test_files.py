import errno
import os
from hashlib import sha256
from pathlib import Path

import pytest

from m2m.errors import UserError
from m2m.files import file_digest, folder_digest, is_intact, new_file, sealed_file, write_atomically, writing


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


def test_a_sealed_file_is_believed_until_a_bit_changes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    assert not is_intact(path)
    for content in (b"one", b"two"):
        with sealed_file(path) as draft:
            draft.write_bytes(content)
        assert is_intact(path)
    assert names(path.parent) == {"file", "file.sha256"}
    path.write_bytes(b"tww")
    assert not is_intact(path)
    path.write_bytes(b"two")
    (tmp_path / "new" / "file.sha256").write_bytes(b"\xff")
    assert not is_intact(path)
    (tmp_path / "new" / "file.sha256").unlink()
    assert not is_intact(path)


def test_a_kill_before_the_new_content_stands_leaves_the_old_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    with sealed_file(path) as draft:
        draft.write_bytes(b"old")
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target == path:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt), sealed_file(path) as draft:
        draft.write_bytes(b"new")
    assert path.read_bytes() == b"old"
    assert is_intact(path)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that takes in no other, as /proc is")
def test_a_place_that_takes_no_folder_is_named() -> None:
    with pytest.raises(UserError, match="no folder can be made there"):
        write_atomically(Path("/proc/nowhere/file"), b"")
