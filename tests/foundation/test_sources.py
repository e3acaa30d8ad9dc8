"""Weights come from wherever they are first found, and only if they are right; each refusal is one line."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from m2m.errors import UserError
from m2m.files import file_digest, folder_digest
from m2m.foundation.hub import Judge, fetch
from m2m.foundation.sources import Note, Sources, mirror, mirrored_note
from m2m.params import HubFoundation
from m2m.store import LocalStore, Store, open_store

REVISION = "0123456789abcdef0123456789abcdef01234567"
JUDGES = {"inception": Judge("some-network"), "perceptual": Judge("another")}
UNET = "unet/diffusion_pytorch_model.safetensors"
CHECKER = {
    "safety_checker__config.json": b'{"a": "checker"}',
    "safety_checker__model.safetensors": b"its weights",
    "feature_extractor__preprocessor_config.json": b'{"its": "eyes"}',
}


def saved(**state: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.fixture
def params(hub: Any, tiny_stable_diffusion: Path, tiny_dino: Path) -> HubFoundation:
    hub.add("sd/tiny", tiny_stable_diffusion)
    hub.add("sd/checker", tiny_stable_diffusion, **CHECKER)
    hub.add("meta/dino", tiny_dino)
    hub.add("meta/clip", tiny_dino)
    made: HubFoundation = hub.params(saved(one=torch.ones(3)), saved(two=torch.ones(2)))
    return made


@pytest.fixture
def here(params: HubFoundation, tmp_path: Path) -> Path:
    """A machine that has fetched: its foundation in ``out``, what it keeps in ``work``."""
    fetch(params, out=tmp_path / "here" / "out", sources=Sources(tmp_path / "here" / "work"), **JUDGES)
    return tmp_path / "here"


@pytest.fixture
def there(params: HubFoundation, tmp_path: Path) -> Callable[..., Path]:
    """Fetches on another machine, each time a new one, and gives its foundation."""
    count = iter(range(100))

    def call(**sources: Any) -> Path:
        machine = tmp_path / f"there-{next(count)}"
        fetch(params, out=machine / "out", sources=Sources(machine / "work", **sources), **JUDGES)
        return machine / "out"

    return call


def fill(store: Store, params: HubFoundation, here: Path) -> None:
    files, size = mirror(params, work=here / "work", store=store)
    assert files > 10
    assert size > 1000


def refused(call: Callable[[], object], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_store_that_has_them_makes_the_hub_unnecessary(
    kind: str,
    hub: Any,
    params: HubFoundation,
    here: Path,
    there: Callable[..., Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    uri = request.getfixturevalue("s3_server").uri if kind == "s3" else str(tmp_path / "store")
    store = open_store(uri, cache=tmp_path / "cache")
    fill(store, params, here)
    kept = sorted(store.objects(""))
    fill(store, params, here)
    assert sorted(store.objects("")) == kept, "what is there stays as it is"
    hub.status, hub.requests = 503, []
    assert folder_digest(there(store=store)) == folder_digest(here / "out")
    assert hub.requests == []


def test_a_folder_that_has_them_does_as_well(hub: Any, here: Path, there: Callable[..., Path]) -> None:
    hub.status, hub.requests = 503, []
    before = folder_digest(here / "work")
    assert folder_digest(there(folder=here / "work")) == folder_digest(here / "out")
    assert hub.requests == []
    assert folder_digest(here / "work") == before


def test_what_the_work_folder_has_is_asked_of_nobody(
    hub: Any, params: HubFoundation, here: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.requests.clear()
    nowhere = LocalStore(here / "out" / "sources.json")  # a file, which any question would find out
    fetch(params, out=tmp_path / "again", sources=Sources(here / "work", nowhere, tmp_path / "nowhere"), **JUDGES)
    assert hub.requests == []
    assert not caplog.messages


def test_what_is_lacking_in_the_store_comes_from_the_next_source(
    hub: Any, params: HubFoundation, here: Path, there: Callable[..., Path], tmp_path: Path
) -> None:
    store = LocalStore(tmp_path / "store")
    fill(store, params, here)
    dino = here / "work" / "meta--dino" / REVISION / "model.safetensors"
    store.remove(f"files/{file_digest(dino)}")
    hub.requests.clear()
    assert folder_digest(there(store=store, folder=here / "work")) == folder_digest(here / "out")
    assert hub.fetched() == []
    assert folder_digest(there(store=store)) == folder_digest(here / "out")
    assert {*hub.fetched()} == {hub.resolve(f"meta/{name}", "model.safetensors") for name in ("dino", "clip")}


def test_what_is_damaged_in_the_store_is_told_and_mended(
    hub: Any,
    params: HubFoundation,
    here: Path,
    there: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = LocalStore(tmp_path / "store")
    fill(store, params, here)
    unet = here / "work" / "sd--tiny" / REVISION / UNET
    key = f"files/{file_digest(unet)}"
    kept = tmp_path / "store" / key
    kept.write_bytes(bytes([kept.read_bytes()[0] ^ 1]) + kept.read_bytes()[1:])
    hub.requests.clear()
    assert folder_digest(there(store=store)) == folder_digest(here / "out")
    assert hub.fetched() == [hub.resolve("sd/tiny", UNET)]
    assert caplog.messages == [f"{key} in the store {store.uri} is damaged: m2m foundation --mirror mends it"]
    fill(store, params, here)
    assert file_digest(kept) == file_digest(unet)


def test_what_is_damaged_in_a_folder_is_told(
    hub: Any, here: Path, there: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = folder_digest(here / "out")
    weights = tmp_path / "weights"
    shutil.copytree(here / "work", weights)
    (weights / "sd--tiny" / REVISION / UNET).write_bytes(b"rotten")
    hub.requests.clear()
    assert folder_digest(there(folder=weights)) == before
    assert hub.fetched() == [hub.resolve("sd/tiny", UNET)]
    (line,) = caplog.messages
    assert line.startswith(f"{weights / 'sd--tiny' / REVISION / UNET}: its SHA-256 is not ")


def test_a_store_that_refuses_is_told_once_and_the_hub_is_asked(
    here: Path, there: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, s3_server: Any
) -> None:
    store = open_store("s3://no-such-bucket", cache=tmp_path / "cache")
    assert folder_digest(there(store=store)) == folder_digest(here / "out")
    (line,) = caplog.messages
    assert "no-such-bucket" in line
    assert line.endswith(
        "there is no such bucket; create it, or set M2M_STORE to another; weights are looked for elsewhere"
    )


def test_where_nobody_has_them_the_line_says_what_would_help(
    there: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    remedy = r"nor are they in the store .*: m2m foundation --mirror puts them there from where the hub answers$"
    refused(lambda: there(store=LocalStore(tmp_path / "store")), rf"sd/tiny: not received \(.*\); .*; {remedy}")


def test_a_pinned_file_that_nobody_has_is_told_alike(
    hub: Any, params: HubFoundation, here: Path, there: Callable[..., Path], tmp_path: Path
) -> None:
    store = LocalStore(tmp_path / "store")
    fill(store, params, here)
    store.remove(f"files/{params.perceptual.sha256}")
    hub.status = 503
    refused(lambda: there(store=store), r"alexnet\.pth: the server answers 503 .*; nor are they in the store")


def test_the_hub_and_a_note_that_tell_different_things(
    hub: Any, params: HubFoundation, here: Path, there: Callable[..., Path]
) -> None:
    note = here / "work" / "meta--dino" / f"{REVISION}.json"
    entries = json.loads(note.read_text())
    note.write_text(
        json.dumps([[name, "0" * 64 if name == "config.json" else sha, size] for name, sha, size in entries])
    )
    words = rf"meta/dino at {REVISION}: the hub has other files than .*{REVISION}\.json tells of; remove that"
    refused(lambda: there(folder=here / "work"), words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[[", "not a list of files"),
        ('{"config.json": 3}', "not a list of files"),
        ('[["../x", "%s", 3]]' % ("0" * 64), "'../x' is no name of a file with its SHA-256"),
        ('[["/etc/x", "%s", 3]]' % ("0" * 64), "'/etc/x' is no name of a file"),
        ('[["config.json", "../x", 3]]', "'config.json' is no name of a file with its SHA-256"),
        ("[]", r"no configuration \(JSON\) in its root; remove it, and the hub is asked again"),
    ],
)
def test_a_note_that_is_none_is_refused(
    content: str, words: str, here: Path, params: HubFoundation, tmp_path: Path
) -> None:
    note = here / "work" / "sd--tiny" / f"{REVISION}.json"
    note.write_text(content)
    refused(
        lambda: fetch(params, out=tmp_path / "out", sources=Sources(here / "work"), **JUDGES),
        rf"{note}: .*{words}",
    )


def test_two_notes_of_one_pin_are_none(params: HubFoundation, here: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    fill(store, params, here)
    note = mirrored_note(params.dino, store)
    assert note
    other = tmp_path / "other"
    other.write_bytes(note.only(["config.json"]).content())
    store.put(f"weights/meta--dino/{REVISION}/{file_digest(other)}.json", other, file_digest(other))
    refused(lambda: mirrored_note(params.dino, store), "tell of different files for one pin; remove the wrong one")


def test_what_was_not_fetched_cannot_be_mirrored(params: HubFoundation, tmp_path: Path) -> None:
    refused(
        lambda: mirror(params, work=tmp_path / "work", store=LocalStore(tmp_path / "store")),
        "stable-diffusion is not in .*work; fetch it first: m2m foundation",
    )


def test_a_note_reads_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    for name in ("config.json", "unet/config.json"):
        (tmp_path / name).write_text(name)
    note = Note.of(tmp_path, ["unet/config.json", "config.json"])
    assert note.names == ["config.json", "unet/config.json"]
    assert note.bytes == len("config.json") + len("unet/config.json")
    (tmp_path / "note").write_bytes(note.content())
    assert Note.read(tmp_path / "note", where="here").files == note.files


def test_a_note_does_not_overrule_what_is_pinned(
    params: HubFoundation, here: Path, there: Callable[..., Path], hub: Any, tmp_path: Path, caplog: Any
) -> None:
    store = LocalStore(tmp_path / "store")
    fill(store, params, here)
    (key,) = (key for key, _ in store.objects("weights/") if params.inception.sha256 in key)
    other = tmp_path / "other"
    other.write_bytes(b"of somebody")
    store.put(f"files/{file_digest(other)}", other, file_digest(other))
    other.write_text(json.dumps([[f"{params.inception.sha256}.pth", file_digest(other), 11]]))
    store.remove(key)
    store.put(f"{key.rpartition('/')[0]}/{file_digest(other)}.json", other, file_digest(other))
    assert folder_digest(there(store=store)) == folder_digest(here / "out")
    assert "tells of another file than the one that is pinned; remove it" in caplog.text
