import errno
import hashlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from m2m.errors import UserError
from m2m.files import folder_digest
from m2m.foundation import hub as published
from m2m.foundation.hub import STABLE_DIFFUSION, TRANSFORMER, Judge, choose, fetch
from m2m.foundation.sources import Sources
from m2m.params import HubFile, HubFoundation, HubSnapshot

REVISION = "0123456789abcdef0123456789abcdef01234567"
UNET = "unet/diffusion_pytorch_model.safetensors"
CHECKER = {
    "safety_checker__config.json": b'{"a": "checker"}',
    "safety_checker__model.safetensors": b"its weights",
    "safety_checker__model.fp16.safetensors": b"half",
    "safety_checker__pytorch_model.bin": b"pickle",
    "feature_extractor__preprocessor_config.json": b'{"its": "eyes"}',
}
CHECKER_FILES = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}


def saved(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


STATE = {"layer.weight": torch.arange(12.0).reshape(3, 4).T, "layer.bias": torch.zeros(()).expand(4)}
WEIGHTS = saved(STATE)
OTHER = saved({"features.0.weight": torch.ones(2), "classifier.6.weight": torch.zeros(3)})
JUDGES = {
    "inception": Judge("some-network"),
    "perceptual": Judge("another", lambda state: {"only.weight": state["features.0.weight"] + 1}),
}


@pytest.fixture
def params(hub: Any, tiny_stable_diffusion: Path, tiny_dino: Path) -> HubFoundation:
    """A whole foundation on the hub, each repository with what repositories have beside what is needed."""
    other = {"unet__diffusion_pytorch_model.fp16.safetensors": b"half", "unet__diffusion_pytorch_model.bin": b"pickle"}
    single = {"v2-1_512-ema-pruned.safetensors": b"single file", "v2-1_512-ema-pruned.ckpt": b"pickle"}
    checker = {"safety_checker__config.json": b"{}", "safety_checker__model.safetensors": b"checker"}
    card = {"README.md": b"---\nlicense: openrail++\n---\n", ".gitattributes": b"*.safetensors filter=lfs\n"}
    hub.add("sd/tiny", tiny_stable_diffusion, **other, **single, **checker, **card)
    hub.add("sd/checker", tiny_stable_diffusion, **CHECKER, **single, **card)
    hub.add("meta/dino", tiny_dino, **{"pytorch_model.bin": b"pickle", "assets__picture.png": b"png"})
    hub.add("meta/clip", tiny_dino, **{"flax_model.msgpack": b"flax", "merges.txt": b"#version: 0.2\n"})
    made: HubFoundation = hub.params(WEIGHTS, OTHER)
    return made


@pytest.fixture
def get(params: HubFoundation, tmp_path: Path) -> Callable[..., Path]:
    """Fetches into a fresh folder, with the same downloads kept between the calls."""
    count = iter(range(100))

    def call(**changed: Any) -> Path:
        out = tmp_path / f"out-{next(count)}"
        fetch(params.model_copy(update=changed), out=out, sources=Sources(tmp_path / "work"), **JUDGES)
        return out

    return call


def refused(get: Callable[..., Path], words: str, **changed: Any) -> str:
    """Expects one line for a person that holds the words."""
    with pytest.raises(UserError, match=words) as caught:
        get(**changed)
    text = str(caught.value)
    assert "\n" not in text
    return text


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_is_needed_comes_and_nothing_else(hub: Any, get: Callable[..., Path], tiny_stable_diffusion: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from transformers import BitImageProcessorPil, Dinov2Model

    out = get()
    checker = {f"safety_checker/{name}" for name in CHECKER_FILES}
    assert names(out / "stable-diffusion") == names(tiny_stable_diffusion) | {"README.md"} | checker
    folder = out / "stable-diffusion" / "safety_checker"
    assert (folder / "model.safetensors").read_bytes() == b"its weights", "and not those of Stable Diffusion's own"
    assert (folder / "preprocessor_config.json").read_bytes() == b'{"its": "eyes"}'
    assert names(out / "dino") == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert names(out / "clip") == {"config.json", "merges.txt", "model.safetensors", "preprocessor_config.json"}
    assert names(out / "inception") == names(out / "perceptual") == {"config.json", "model.safetensors"}

    pipeline = StableDiffusionPipeline.from_pretrained(out / "stable-diffusion", local_files_only=True)
    original = StableDiffusionPipeline.from_pretrained(tiny_stable_diffusion, local_files_only=True)
    for part in ("unet", "vae", "text_encoder"):
        weights = getattr(original, part).state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in getattr(pipeline, part).state_dict().items())
    Dinov2Model.from_pretrained(out / "dino", local_files_only=True)
    BitImageProcessorPil.from_pretrained(out / "dino", local_files_only=True)

    assert (
        len(hub.fetched()) == len(set(hub.fetched())) == len(names(out)) - 3
    )  # two config.json are ours, and sources.json
    # Nobody is told what else is installed or used here.
    assert not any("torch" in agent or "agent/" in agent for agent in hub.agents)
    assert {path.split("/")[1] for _, path, _ in hub.requests} == {"api", "sd", "meta", "inception.pth", "alexnet.pth"}
    assert {path.split("/")[2] for _, path, _ in hub.requests if path.startswith("/api/")} == {"models"}


def test_a_pickled_state_dictionary_becomes_safetensors(get: Callable[..., Path], params: HubFoundation) -> None:
    folder = get() / "inception"
    config = json.loads((folder / "config.json").read_text())
    assert config == {"architecture": "some-network", **params.inception.model_dump()}
    tensors = load_file(folder / "model.safetensors")
    assert tensors.keys() == STATE.keys()
    assert all(torch.equal(tensors[name], value) for name, value in STATE.items())


def test_of_a_file_what_its_network_needs_is_kept(get: Callable[..., Path], params: HubFoundation) -> None:
    folder = get() / "perceptual"
    config = json.loads((folder / "config.json").read_text())
    assert config == {"architecture": "another", **params.perceptual.model_dump()}
    assert {name: value.tolist() for name, value in load_file(folder / "model.safetensors").items()} == {
        "only.weight": [2, 2]
    }


def test_a_second_run_asks_nobody_and_makes_the_same(hub: Any, get: Callable[..., Path]) -> None:
    first = get()
    hub.requests.clear()
    second = get()
    assert folder_digest(first) == folder_digest(second)
    assert hub.requests == []
    assert (first / "dino" / "model.safetensors").samefile(second / "dino" / "model.safetensors")


def test_without_links_files_are_copied(get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = get()

    def refuse(*_: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    assert folder_digest(get()) == folder_digest(first)


def test_a_connection_that_breaks_is_resumed(
    hub: Any, get: Callable[..., Path], tiny_stable_diffusion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    path = hub.resolve("sd/tiny", UNET)
    hub.breaks[path] = 10_000
    out = get()
    assert (out / "stable-diffusion" / UNET).read_bytes() == (tiny_stable_diffusion / UNET).read_bytes()
    assert [asked for method, where, asked in hub.requests if where == path and method == "GET"] == [
        None,
        "bytes=10000-",
    ]


def test_a_killed_run_goes_on_with_what_is_whole(
    hub: Any, params: HubFoundation, get: Callable[..., Path], tmp_path: Path
) -> None:
    hub.stalls[hub.resolve("sd/tiny", UNET)] = 10_000
    program = (
        "import sys; from pathlib import Path;"
        "from m2m.foundation.hub import Judge, fetch; from m2m.foundation.sources import Sources;"
        "from m2m.params import HubFoundation;"
        "params, out, work = sys.argv[1:];"
        "fetch(HubFoundation.model_validate_json(params), out=Path(out), sources=Sources(Path(work)), "
        "inception=Judge('one'), perceptual=Judge('other'))"
    )
    arguments = [params.model_dump_json(), str(tmp_path / "killed"), str(tmp_path / "work")]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")},
        stderr=subprocess.DEVNULL,
    )
    kept = tmp_path / "work" / "sd--tiny" / REVISION
    wanted = set(choose(hub.repositories["sd/tiny"], STABLE_DIFFUSION)) - {UNET}
    try:
        deadline = time.monotonic() + 120
        while not wanted <= names(kept) or not list(kept.rglob("*.incomplete")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        hub.released.set()
    assert not (tmp_path / "killed").exists()

    hub.requests.clear()
    out = get()
    again = {path for path in hub.fetched() if path.startswith("/sd/")}
    assert hub.resolve("sd/tiny", UNET) in again
    assert hub.resolve("sd/tiny", "vae/diffusion_pytorch_model.safetensors") not in again
    assert names(out / "stable-diffusion") == wanted | {UNET} | {f"safety_checker/{name}" for name in CHECKER_FILES}
    assert not list(kept.rglob("*.incomplete"))


def test_a_damaged_file_is_fetched_once_more(hub: Any, get: Callable[..., Path], tiny_dino: Path) -> None:
    hub.lies = {hub.resolve("meta/dino", "model.safetensors"): 1, hub.resolve("meta/dino", "config.json"): 1}
    hub.lies |= {"/inception.pth": 1, "/alexnet.pth": 1}
    out = get()
    for name in ("model.safetensors", "config.json"):
        assert (out / "dino" / name).read_bytes() == (tiny_dino / name).read_bytes()
        assert hub.fetched().count(hub.resolve("meta/dino", name)) == 2
    assert hub.fetched().count("/inception.pth") == hub.fetched().count("/alexnet.pth") == 2


def test_a_file_that_stays_damaged_is_refused(hub: Any, get: Callable[..., Path], tmp_path: Path) -> None:
    hub.lies[hub.resolve("meta/dino", "model.safetensors")] = 9
    refused(get, rf"meta/dino at {REVISION}: model\.safetensors has not the checksum that the hub states")
    assert not list((tmp_path / "work" / "meta--dino").rglob("model.safetensors"))


@pytest.mark.parametrize(("path", "key"), [("inception.pth", "inception"), ("alexnet.pth", "perceptual")])
def test_another_file_than_the_pinned_one_is_refused_and_nothing_of_it_kept(
    path: str, key: str, hub: Any, get: Callable[..., Path], tmp_path: Path
) -> None:
    right = hub.files[f"/{path}"]
    changed = hub.files[f"/{path}"] = bytes([right[0] ^ 1]) + right[1:]
    text = refused(get, rf"{path}: its SHA-256 is .* but foundation\.{key}\.sha256 says")
    assert hashlib.sha256(changed).hexdigest() in text
    assert not list((tmp_path / "work").glob(f"{hashlib.sha256(right).hexdigest()}.*"))
    assert not (tmp_path / "out-0" / key).exists()


def test_an_interrupted_file_goes_on_where_it_was(
    hub: Any, get: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "CHUNK", 100)
    hub.breaks["/inception.pth"] = 700
    refused(get, r"inception\.pth: not received \(.*\); check the network; the same command then goes on where it was")
    (part,) = (path for path in (tmp_path / "work").iterdir() if path.is_file())
    assert part.read_bytes() == WEIGHTS[:700]
    get()
    asked = [asked for _, path, asked in hub.requests if path == "/inception.pth"]
    assert asked == [None, "bytes=700-"]
    assert not part.exists()


def test_a_part_that_is_whole_needs_no_more_and_one_too_long_starts_again(
    get: Callable[..., Path], params: HubFoundation, tmp_path: Path
) -> None:
    whole, part = (tmp_path / "work" / f"{params.inception.sha256}{suffix}" for suffix in (".pth", ".part"))
    for start in (WEIGHTS, WEIGHTS + b"more", b"other" + WEIGHTS[5:100]):
        whole.unlink(missing_ok=True)
        part.parent.mkdir(exist_ok=True)
        part.write_bytes(start)
        get()
        assert whole.read_bytes() == WEIGHTS


def test_a_kept_file_that_was_damaged_since_is_fetched_again(
    hub: Any, get: Callable[..., Path], params: HubFoundation, tmp_path: Path
) -> None:
    get()
    whole = tmp_path / "work" / f"{params.inception.sha256}.pth"
    whole.write_bytes(b"rotten")
    unet = tmp_path / "work" / "sd--tiny" / REVISION / UNET
    unet.write_bytes(b"rotten")
    hub.requests.clear()
    get()
    assert hub.fetched() == [hub.resolve("sd/tiny", UNET), "/inception.pth"]
    assert whole.read_bytes() == WEIGHTS


def test_what_the_hub_refuses_is_said_in_one_line(hub: Any, get: Callable[..., Path]) -> None:
    missing = HubSnapshot(repo="meta/missing", revision=REVISION)
    refused(get, rf"{hub.url}/meta/missing: not found, or private; .*HF_TOKEN", dino=missing)
    other = HubSnapshot(repo="meta/dino", revision="f" * 40)
    refused(get, rf"{hub.url}/meta/dino: there is no revision {'f' * 40}", dino=other)
    refused(get, "'a/b/c' is not the name of a repository", dino=HubSnapshot(repo="a/b/c", revision=REVISION))
    gone = HubFile(url=f"{hub.url}/gone.pth", sha256="0" * 64)
    refused(get, r"gone\.pth: the server answers 404 Not Found", inception=gone)
    hub.gated.add("meta/gated")
    gated = HubSnapshot(repo="meta/gated", revision=REVISION)
    refused(get, rf"meta/gated: accept its terms at {hub.url}/meta/gated, then set HF_TOKEN", clip=gated)
    hub.status = 500
    refused(get, "sd/other: the server answers 500", stable_diffusion=HubSnapshot(repo="sd/other", revision=REVISION))


def test_a_network_that_is_not_there_is_said_in_one_line(
    get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        refused(get, "sd/tiny: HF_HUB_OFFLINE is set, so the hub may not be asked; unset it")
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        refused(get, r"sd/tiny: not received \(.*refused.*\); check the network")
    refused(get, r"nonsense: not received \(.*\)", inception=HubFile(url="nonsense", sha256="0" * 64))


def test_a_repository_of_pickles_is_refused_before_any_of_it_comes(hub: Any, get: Callable[..., Path]) -> None:
    hub.repositories["meta/dino"]["pytorch_model.bin"] = hub.repositories["meta/dino"].pop("model.safetensors")
    refused(get, r"meta/dino at .*: no model\.safetensors in its root \(only pytorch_model\.bin, and pickles are never")
    assert not [path for path in hub.fetched() if path.startswith("/meta/dino")]


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.abort, ()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(saved([torch.zeros(1)]), id="a list"),
        pytest.param(saved({"step": 3}), id="no tensors"),
        pytest.param(saved({}), id="empty"),
        pytest.param(b"not saved by torch", id="no pickle"),
        pytest.param(b"", id="nothing"),
        pytest.param(WEIGHTS[:-50], id="cut off"),
        pytest.param(pickle.dumps({"weight": Bomb()}, protocol=2), id="code"),
    ],
)
def test_what_is_no_state_dictionary_is_refused(hub: Any, get: Callable[..., Path], content: bytes) -> None:
    hub.files["/inception.pth"] = content
    pinned = HubFile(url=f"{hub.url}/inception.pth", sha256=hashlib.sha256(content).hexdigest())
    refused(get, r"inception\.pth: not a state dictionary of tensors by name", inception=pinned)


def test_a_disk_that_refuses_is_said_in_one_line(
    get: Callable[..., Path], params: HubFoundation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / f"{params.inception.sha256}.part").symlink_to("/dev/full")
    refused(get, r"cannot write .*work: the disk is full")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(published, "snapshot_download", full)
    refused(get, r"cannot write .*work: the disk is full")


SD_FILES = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "unet/config.json",
    UNET,
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
]


def test_of_all_that_a_repository_has_one_form_of_each_part_is_chosen() -> None:
    others = [
        *("README.md", "v2-1.safetensors", "v2-1.ckpt", ".gitattributes", "feature_extractor/preprocessor_config.json"),
        *("safety_checker/config.json", "safety_checker/model.safetensors", "unet/diffusion_pytorch_model.bin"),
        *("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors"),
        *("unet/onnx/model.onnx", "text_encoder/model.fp16.safetensors", "text_encoder/openvino_model.xml"),
        *(
            "vae/diffusion_pytorch_model.safetensors.index.json",
            "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
        ),
    ]
    chosen = choose([*others, *SD_FILES], STABLE_DIFFUSION)
    assert sorted(chosen) == sorted([*SD_FILES, "README.md", "feature_extractor/preprocessor_config.json"])


def test_weights_in_parts_come_with_their_index() -> None:
    parts = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    half = [f"model-0000{part}-of-00002.fp16.safetensors" for part in (1, 2)]
    indices = ["model.safetensors.index.json", "model.fp16.safetensors.index.json"]
    chosen = choose(["config.json", *parts, *half, *indices], TRANSFORMER)
    assert sorted(chosen) == ["config.json", *parts, "model.safetensors.index.json"]
    with pytest.raises(UserError, match=r"no model\.safetensors in its root$"):
        choose(["config.json", *parts], TRANSFORMER)


@pytest.mark.parametrize("missing", SD_FILES)
def test_a_missing_part_is_named(missing: str) -> None:
    if missing == "tokenizer/merges.txt":
        assert missing not in choose([name for name in SD_FILES if name != missing], STABLE_DIFFUSION)
        return
    folder, name = os.path.split(missing)
    expected = name if name.endswith(".safetensors") else "configuration"
    with pytest.raises(UserError, match=f"no {expected}.* in {folder or 'its root'}"):
        choose([name for name in SD_FILES if name != missing], STABLE_DIFFUSION)


def test_one_repository_may_have_both_stable_diffusion_and_its_checker(
    hub: Any, params: HubFoundation, tmp_path: Path
) -> None:
    both, work = params.model_copy(update={"safety_checker": params.stable_diffusion}), tmp_path / "both"
    fetch(both, out=tmp_path / "one", sources=Sources(work), **JUDGES)
    assert (tmp_path / "one" / "stable-diffusion" / "safety_checker" / "model.safetensors").read_bytes() == b"checker"
    assert (tmp_path / "one" / "stable-diffusion" / UNET).exists()
    hub.requests = []
    fetch(both, out=tmp_path / "two", sources=Sources(work), **JUDGES)
    assert hub.requests == []
    assert folder_digest(tmp_path / "one") == folder_digest(tmp_path / "two")
