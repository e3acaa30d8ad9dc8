import errno
import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from safetensors import SafetensorError

from m2m.errors import FOUNDATION_RESTORED, UserError
from m2m.files import (
    DIGESTS,
    check_digests,
    check_seal,
    file_digest,
    folder_digest,
    is_intact,
    new_file,
    new_folder,
    reading_foundation,
    scratch_folder,
    sealed_file,
    stated_digest,
    write_atomically,
    write_digests,
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


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_new_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with new_folder(tmp_path / "model") as draft:
            (draft / text).write_text(text)
            assert (tmp_path / "model").exists() == (text == "second")
    assert texts(tmp_path / "model") == {"second": "second"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_kill_left_is_no_part_of_a_new_folder(tmp_path: Path) -> None:
    (tmp_path / ".model.new").mkdir()
    (tmp_path / ".model.new" / "half").write_text("half")
    with new_folder(tmp_path / "model") as draft:
        (draft / "whole").write_text("whole")
    assert texts(tmp_path / "model") == {"whole": "whole"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), SafetensorError("I/O error: No space left on device (os error 28)")],
    ids=["system", "safetensors"],
)
def test_a_full_disk_is_one_line_and_leaves_the_old_one(tmp_path: Path, error: Exception) -> None:
    with new_folder(tmp_path / "model") as draft:
        (draft / "old").write_text("old")
    with pytest.raises(UserError, match=r"cannot write .*model: the disk is full"), new_folder(tmp_path / "model"):
        raise error
    assert texts(tmp_path / "model") == {"old": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_errors_that_are_no_refusal_pass_through_and_leave_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError, match="bad header"), new_folder(tmp_path / "model"):
        raise SafetensorError("bad header")
    assert list(tmp_path.iterdir()) == []


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


def test_a_folder_is_compared_with_the_digests_that_its_maker_wrote(tmp_path: Path) -> None:
    for name in ("index", "unet/weights", "unet/config", "vae/weights", ".cache/tool"):
        write_atomically(tmp_path / name, name.encode())
    before = folder_digest(tmp_path)
    check_digests(tmp_path)  # nobody promised anything
    write_digests(tmp_path)
    assert folder_digest(tmp_path) == before, "the list tells nothing new"
    assert set(json.loads((tmp_path / DIGESTS).read_text())) == {"index", "unet/weights", "unet/config", "vae/weights"}
    check_digests(tmp_path)
    write_atomically(tmp_path / "notes", b"of its user")
    write_atomically(tmp_path / "unet" / "weights", b"unet/weighus")
    check_digests(tmp_path, "vae", "unet/config", "index")
    for parts in ((), ("unet",), ("vae", "unet/weights")):
        with pytest.raises(UserError, match=r"unet/weights: damaged, .* chmod -R u\+w .* dvc repro") as caught:
            check_digests(tmp_path, *parts)
        assert "\n" not in str(caught.value)
    (tmp_path / "unet" / "weights").unlink()
    with pytest.raises(UserError, match="unet/weights: missing"):
        check_digests(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[1]", b"7", b"[[1, 2]]", b'{"a\\nb": ""}', b"[" * 100000])
def test_a_list_of_digests_that_is_damaged_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / DIGESTS).write_bytes(content)
    with pytest.raises(UserError, match=r"digests\.json: damaged") as caught:
        check_digests(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_seal_is_what_sha256sum_checks(tmp_path: Path) -> None:
    path = tmp_path / "mis.json"
    check_seal(path)
    for content in (b"{}", b"{1}"):
        with sealed_file(path) as draft:
            draft.write_bytes(content)
    assert (tmp_path / "mis.json.sha256").read_text() == f"{sha256(b'{1}').hexdigest()}  mis.json\n"
    check_seal(path)
    path.write_bytes(b"{}")
    with pytest.raises(UserError, match=r"mis\.json: damaged, its SHA-256 is not the one in mis\.json\.sha256"):
        check_seal(path)


@pytest.mark.slow
def test_what_is_said_of_a_damaged_cache_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC restores a damaged file of its cache, and calls it up to date."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))

    def call(command: str) -> None:
        subprocess.run(command, shell=True, check=True, capture_output=True)

    make = "import sys; from pathlib import Path; from m2m.files import *; folder = Path('model')"
    make += "; write_atomically(folder / 'weights', b'1234567890'); write_digests(folder)"
    Path("make.py").write_text(make)
    Path("dvc.yaml").write_text("stages:\n  train:\n    cmd: python make.py\n    outs: [model]\n")
    call("git init -q && dvc init -q && dvc repro")
    cached = [path for path in (tmp_path / ".dvc" / "cache").rglob("*") if path.is_file()]
    kept = next(path for path in cached if path.read_bytes() == b"1234567890")
    kept.chmod(0o644)
    kept.write_bytes(b"1234567899")
    kept.chmod(0o444)
    call("rm -r model && dvc checkout && dvc repro")
    with pytest.raises(UserError, match="damaged") as caught:
        check_digests(tmp_path / "model")
    call(str(caught.value).partition("make again what is lost: ")[2].partition(";")[0])
    check_digests(tmp_path / "model")
    assert kept.read_bytes() == b"1234567890"


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
    assert str(caught.value).startswith(f"{tmp_path}: incomplete or damaged ({reason}); {FOUNDATION_RESTORED}")
    with pytest.raises(UserError, match=r"^known$"), reading_foundation(tmp_path):
        raise UserError("known")


def test_the_digest_that_a_maker_wrote_is_that_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/c.txt", "b.txt", "a.txt", ".hidden"):
        (tmp_path / name).write_text(name)
    assert stated_digest(tmp_path) == folder_digest(tmp_path)
    write_digests(tmp_path)
    whole = folder_digest(tmp_path)
    assert stated_digest(tmp_path) == whole
    (tmp_path / "a.txt").write_text("other")
    assert stated_digest(tmp_path) == whole != folder_digest(tmp_path)
    (tmp_path / DIGESTS).write_text("[")
    with pytest.raises(UserError, match=r"digests\.json: damaged, not a list of digests"):
        stated_digest(tmp_path)


def test_a_scratch_folder_is_of_one_call_alone_and_gone_afterwards(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "work", "shard") as one, scratch_folder(tmp_path / "work", "shard") as other:
        (one / "file").write_text("one")
        (other / "file").write_text("other")
        assert (one / "file").read_text() == "one"
    assert names(tmp_path / "work") == set()

    def fail() -> None:
        with scratch_folder(tmp_path / "work", "shard") as folder:
            (folder / "file").write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert names(tmp_path / "work") == set()


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from m2m.files import scratch_folder
with scratch_folder(Path(sys.argv[1]), "shard") as folder:
    (folder / "file").write_text("half")
    print("written", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "written\n"
            (held,) = names(tmp_path)
            with scratch_folder(tmp_path, "shard"), scratch_folder(tmp_path, "another"):
                assert (tmp_path / held / "file").read_text() == "half"
            assert names(tmp_path) == {held}
        finally:
            process.kill()
    assert names(tmp_path) == {held}
    with scratch_folder(tmp_path, "another"):
        assert held in names(tmp_path)
    with scratch_folder(tmp_path, "shard") as ours:
        assert names(tmp_path) == {ours.name}
