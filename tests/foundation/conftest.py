"""Pictures to learn from; and a hub at 127.0.0.1 as huggingface_hub expects it, with the faults of a network."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
from torch import nn
from transformers import CLIPTokenizer

from m2m.foundation.fit import Loss
from m2m.foundation.text_to_image import learn_tokenizer
from m2m.foundation.world import Lessons
from m2m.params import HubFile, HubFoundation, HubSnapshot
from m2m.world.corpus import make_corpus

REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What is served, how it fails, and what was asked."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """owner/name -> file -> content, all at `REVISION`."""
    files: dict[str, bytes] = field(default_factory=dict)
    """path -> content, outside of any repository."""
    status: int | None = None
    """Answered to everything, if set."""
    gated: set[str] = field(default_factory=set)
    breaks: dict[str, int] = field(default_factory=dict)
    """path -> bytes after which the connection breaks, once."""
    stalls: dict[str, int] = field(default_factory=dict)
    """path -> bytes after which nothing more comes until `released`."""
    released: threading.Event = field(default_factory=threading.Event)
    lies: dict[str, int] = field(default_factory=dict)
    """path -> how many times it is served with a changed byte."""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(method, path, range)"""
    agents: set[str] = field(default_factory=set)

    def add(self, repo: str, folder: Path, **extra: bytes) -> None:
        """Publish a folder as a repository, with more files (``unet__x.bin`` for ``unet/x.bin``)."""
        content = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        self.repositories[repo] = content | {name.replace("__", "/"): value for name, value in extra.items()}

    def params(self, inception: bytes, perceptual: bytes) -> HubFoundation:
        """Publishes two files of weights; the parameters that fetch these and four repositories."""
        self.files |= {"/inception.pth": inception, "/alexnet.pth": perceptual}
        return HubFoundation(
            source="hub",
            revision=1,
            stable_diffusion=HubSnapshot(repo="sd/tiny", revision=REVISION),
            dino=HubSnapshot(repo="meta/dino", revision=REVISION),
            clip=HubSnapshot(repo="meta/clip", revision=REVISION),
            inception=HubFile(url=f"{self.url}/inception.pth", sha256=hashlib.sha256(inception).hexdigest()),
            perceptual=HubFile(url=f"{self.url}/alexnet.pth", sha256=hashlib.sha256(perceptual).hexdigest()),
            safety_checker=HubSnapshot(repo="sd/checker", revision=REVISION),
        )

    def resolve(self, repo: str, name: str) -> str:
        """The path at which a file of a repository is asked for."""
        return f"/{repo}/resolve/{REVISION}/{name}"

    def fetched(self) -> list[str]:
        """The paths whose content was asked for, in order."""
        return [path for method, path, _ in self.requests if method == "GET" and not path.startswith("/api/")]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers["Range"]))
        self.hub.agents.add(self.headers["User-Agent"])
        if self.hub.status:
            self.answer(b"", status=self.hub.status)
        elif path in self.hub.files:
            self.give(path, self.hub.files[path])
        elif path.startswith("/api/models/"):
            owner, name, kind, revision = path.removeprefix("/api/models/").split("/")
            if files := self.repository(f"{owner}/{name}", revision):
                self.answer(json.dumps(describe(kind, f"{owner}/{name}", files)).encode())
        elif "/resolve/" in path:
            repo, _, rest = path[1:].partition("/resolve/")
            revision, _, name = rest.partition("/")
            if files := self.repository(repo, revision):
                self.give(path, files[name], {"X-Repo-Commit": REVISION, "ETag": f'"{etag(name, files[name])}"'})
        else:
            self.answer(b"", status=404)

    do_HEAD = do_GET  # noqa: N815

    def repository(self, repo: str, revision: str) -> dict[str, bytes] | None:
        if repo in self.hub.gated:
            self.answer(b"", {"X-Error-Code": "GatedRepo"}, status=403)
        elif repo not in self.hub.repositories:
            self.answer(b"", {"X-Error-Code": "RepoNotFound"}, status=401)
        elif revision != REVISION:
            self.answer(b"", {"X-Error-Code": "RevisionNotFound"}, status=404)
        else:
            return self.hub.repositories[repo]
        return None

    def give(self, path: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        if self.hub.lies.get(path) and self.command == "GET":
            self.hub.lies[path] -= 1
            content = bytes([content[0] ^ 1]) + content[1:]
        if (wanted := self.headers["Range"]) and self.command == "GET":
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            partly = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            status = 206 if start < len(content) else 416
            self.answer(content[start:], (headers or {}) | partly, status=status, path=path)
        else:
            self.answer(content, headers, path=path)

    def answer(
        self, content: bytes, headers: dict[str, str] | None = None, *, status: int = 200, path: str = ""
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if path in self.hub.breaks:
            content, self.close_connection = content[: self.hub.breaks.pop(path)], True
        elif path in self.hub.stalls:
            self.wfile.write(content[: self.hub.stalls.pop(path)])
            self.wfile.flush()
            self.hub.released.wait(timeout=60)
            self.close_connection = True
            return
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: the requests are kept."""


def etag(name: str, content: bytes) -> str:
    """As the hub has it: SHA-256 of large files, git's blob id of the others."""
    if name.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def describe(kind: str, repo: str, files: dict[str, bytes]) -> object:
    """The JSON of ``/api/models/REPO/revision/…`` or ``…/tree/…``."""
    if kind == "revision":
        return {"id": repo, "sha": REVISION, "siblings": [{"rfilename": name} for name in files]}
    entries = []
    for name, content in files.items():
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": blob}
        if name.endswith(".safetensors"):
            entry["lfs"] = {"oid": etag(name, content), "size": len(content), "pointerSize": 134}
        entries.append(entry)
    return entries


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A running hub that huggingface_hub takes for the real one."""
    from huggingface_hub import close_session, constants

    served = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": served}))
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        close_session()
        served.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="session")
def lessons() -> Lessons:
    """A few pictures of shapes and of procedures, as the networks of the world get them."""
    return Lessons.of(make_corpus(pictures=12, views=0, steps=4, seed=0, split="train"))


@pytest.fixture(scope="session")
def tokenizer(lessons: Lessons) -> CLIPTokenizer:
    return learn_tokenizer(lessons.captions)


@pytest.fixture
def descend() -> Callable[..., tuple[float, float]]:
    """Trains on all pictures at once; gives the mean loss of the first and of the last few steps."""

    def call(network: nn.Module, loss: Loss, *, pictures: int, steps: int, rate: float = 2e-3) -> tuple[float, float]:
        optimizer = torch.optim.AdamW([value for value in network.parameters() if value.requires_grad], lr=rate)
        losses = []
        for step in range(steps):
            value = loss(torch.arange(pictures), torch.Generator().manual_seed(step))
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(value.item())
        return sum(losses[:3]) / 3, sum(losses[-3:]) / 3

    return call
