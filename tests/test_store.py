import hashlib
import http.client
import http.server
import os
import pickle
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol, Self

import pytest

from m2m import files
from m2m.errors import OutsideError, UserError
from m2m.manifest import shard_key
from m2m.store import Store, open_store
from m2m.store.s3 import _CHUNK, Patience, S3Store

CONTENT = b"a shard" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
KEY = shard_key(SHA256)
SECRET = "m2msecretkey"


class Objects(Protocol):
    """What a store keeps, seen past the store."""

    def write(self, key: str, content: bytes) -> None: ...
    def read(self, key: str) -> bytes: ...
    def delete(self, key: str) -> None: ...
    def keys(self) -> list[str]: ...


class S3Server(Objects, Protocol):
    """What the fixture `s3_server` gives."""

    endpoint: str
    uri: str


class Folder:
    """The objects of a local store."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, key: str, content: bytes) -> None:
        (self.path / key).parent.mkdir(parents=True, exist_ok=True)
        (self.path / key).write_bytes(content)

    def read(self, key: str) -> bytes:
        return (self.path / key).read_bytes()

    def delete(self, key: str) -> None:
        (self.path / key).unlink()

    def keys(self) -> list[str]:
        return [str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file to store."""
    path = tmp_path / "source.tar"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture(params=["local", "s3"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Store, Objects]:
    """Each kind of store, empty."""
    if request.param == "local":
        return open_store(str(tmp_path / "store"), cache=tmp_path / "cache"), Folder(tmp_path / "store")
    server = request.getfixturevalue("s3_server")
    return open_store(server.uri, cache=tmp_path / "cache"), server


def test_it_gives_back_what_it_was_given(opened: tuple[Store, Objects], source: Path, tmp_path: Path) -> None:
    store, objects = opened
    store.check()
    assert not store.exists(KEY, len(CONTENT))
    store.put(KEY, source, SHA256)
    assert objects.read(KEY) == CONTENT
    assert objects.keys() == [KEY]
    assert store.exists(KEY, len(CONTENT))
    assert not store.exists(KEY, len(CONTENT) + 1)
    assert store.get(KEY, SHA256, len(CONTENT)).read_bytes() == CONTENT
    store.download(KEY, tmp_path / "copy" / "shard.tar")
    assert (tmp_path / "copy" / "shard.tar").read_bytes() == CONTENT


def test_what_is_there_and_right_stays_as_it_is(
    opened: tuple[Store, Objects], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, objects = opened
    store.put(KEY, source, SHA256)
    if isinstance(store, S3Store):
        monkeypatch.setattr(store._client, "upload_fileobj", None)
    else:
        monkeypatch.setattr(shutil, "copyfile", None)
    store.put(KEY, source, SHA256)
    assert objects.read(KEY) == CONTENT


@pytest.mark.parametrize("damaged", [CONTENT[:-1] + b"!", CONTENT[:-1]])
def test_what_is_there_and_wrong_is_replaced(damaged: bytes, opened: tuple[Store, Objects], source: Path) -> None:
    store, objects = opened
    objects.write(KEY, damaged)
    store.put(KEY, source, SHA256)
    assert objects.read(KEY) == CONTENT


def test_a_file_that_is_not_what_its_key_says_is_not_stored(opened: tuple[Store, Objects], source: Path) -> None:
    store, objects = opened
    source.write_bytes(b"something else")
    with pytest.raises(UserError, match=KEY):
        store.put(KEY, source, SHA256)
    assert objects.keys() == []


@pytest.mark.parametrize("damaged", [CONTENT[:-1] + b"!", CONTENT[:-1], CONTENT + b"!", b""])
def test_a_damaged_object_is_named(damaged: bytes, opened: tuple[Store, Objects], tmp_path: Path) -> None:
    store, objects = opened
    objects.write(KEY, damaged)
    with pytest.raises(
        UserError, match=f"{KEY} in the store .* is damaged; delete it and make it again: dvc repro --force"
    ):
        store.get(KEY, SHA256, len(CONTENT))
    store.download(KEY, tmp_path / "as-it-is")
    assert (tmp_path / "as-it-is").read_bytes() == damaged


def test_a_missing_object_is_named(opened: tuple[Store, Objects], tmp_path: Path) -> None:
    store, objects = opened
    objects.write("shards/other.tar", b"so that there is a folder")
    with pytest.raises(UserError, match=f"{KEY} is not in the store"):
        store.get(KEY, SHA256, 7)
    with pytest.raises(UserError, match=f"{KEY} is not in the store"):
        store.download(KEY, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_what_is_kept_is_listed_and_what_is_removed_is_gone(opened: tuple[Store, Objects], source: Path) -> None:
    store, objects = opened
    keys = [f"records/views/{number:04}" for number in range(3)]
    for key in [*keys, KEY, "records/other/0"]:
        store.put(key, source, SHA256)
    objects.write("records/views/0003", b"")
    assert list(store.objects("records/views/")) == [*((key, len(CONTENT)) for key in keys), ("records/views/0003", 0)]
    assert list(store.objects("records/none/")) == []
    store.remove(keys[1])
    store.remove(keys[1])
    assert [key for key, _ in store.objects("records/")] == [
        "records/other/0",
        "records/views/0000",
        "records/views/0002",
        "records/views/0003",
    ]


def test_a_store_that_is_sent_elsewhere_is_the_same(opened: tuple[Store, Objects], source: Path) -> None:
    store: Store = pickle.loads(pickle.dumps(opened[0]))  # noqa: S301  # as a cluster sends it
    store.put(KEY, source, SHA256)
    assert opened[0].get(KEY, SHA256, len(CONTENT)).read_bytes() == CONTENT
    assert store.uri == opened[0].uri


def test_a_local_store_gives_its_own_file(tmp_path: Path, source: Path) -> None:
    store = open_store(str(tmp_path / "store"), cache=tmp_path / "cache")
    store.put(KEY, source, SHA256)
    assert store.get(KEY, SHA256, len(CONTENT)) == tmp_path / "store" / KEY
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="its folder is a file"):
        open_store(str(tmp_path / "file"), cache=tmp_path).check()


@pytest.mark.parametrize("uri", ["gs://bucket/prefix", "s3://", "s3:///prefix", f"s3://key:{SECRET}@bucket"])
def test_an_address_of_another_kind_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a folder or s3://bucket/prefix") as caught:
        open_store(uri, cache=tmp_path)
    assert SECRET not in str(caught.value)


def test_a_prefix_keeps_stores_apart(s3_server: S3Server, tmp_path: Path, source: Path) -> None:
    store = open_store(f"{s3_server.uri}/some/prefix/", cache=tmp_path / "cache")
    store.put(KEY, source, SHA256)
    assert s3_server.keys() == [f"some/prefix/{KEY}"]
    assert store.uri == f"{s3_server.uri}/some/prefix"
    assert store.get(KEY, SHA256, len(CONTENT)).read_bytes() == CONTENT


def test_what_was_fetched_is_not_fetched_again(s3_server: S3Server, tmp_path: Path, source: Path) -> None:
    store = open_store(s3_server.uri, cache=tmp_path / "cache")
    store.put(KEY, source, SHA256)
    fetched = store.get(KEY, SHA256, len(CONTENT))
    s3_server.delete(KEY)
    assert store.get(KEY, SHA256, len(CONTENT)) == fetched


def test_the_cache_is_bounded_and_what_was_used_longest_ago_goes(s3_server: S3Server, tmp_path: Path) -> None:
    objects = []
    for number in range(6):
        content = bytes([number]) * 1000
        sha256 = hashlib.sha256(content).hexdigest()
        (tmp_path / "source").write_bytes(content)
        objects.append((shard_key(sha256), sha256, 1000))
        open_store(s3_server.uri, cache=tmp_path / "none").put(objects[-1][0], tmp_path / "source", sha256)
    cache = tmp_path / "cache"
    store = open_store(s3_server.uri, cache=cache, cache_bytes=3500)

    def kept() -> set[int]:
        return {number for number, (key, *_) in enumerate(objects) if (cache / key).exists()}

    for age, number in enumerate((0, 1, 2)):
        os.utime(store.get(*objects[number]), ns=(0, age))
    assert kept() == {0, 1, 2}
    store.get(*objects[0])  # used again
    with store.get(*objects[1]).open("rb") as opened:
        os.utime(cache / objects[1][0], ns=(0, 1))
        store.get(*objects[3])
        assert kept() == {0, 2, 3}
        assert opened.read() == bytes([1]) * 1000, "who reads it goes on"
    draft, left_by_a_kill = cache / "shards" / ".one.tar.0123", cache / "shards" / ".two.tar.4567"
    for path in (draft, left_by_a_kill):
        path.write_bytes(bytes(1000))
    os.utime(left_by_a_kill, ns=(0, 0))
    another = open_store(s3_server.uri, cache=cache, cache_bytes=1000)
    another.get(*objects[4])
    assert kept() == {4}, "what others left counts, too"
    assert (draft.exists(), left_by_a_kill.exists()) == (True, False)


def test_what_another_process_removes_meanwhile_is_fetched_again(
    s3_server: S3Server, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(s3_server.uri, cache=tmp_path / "cache")
    store.put(KEY, source, SHA256)
    kept = store.get(KEY, SHA256, len(CONTENT))
    digest = files.file_digest

    def removed(path: Path) -> str:
        monkeypatch.setattr(files, "file_digest", digest)
        kept.unlink()
        return digest(path)

    monkeypatch.setattr(files, "file_digest", removed)
    assert store.get(KEY, SHA256, len(CONTENT)).read_bytes() == CONTENT


def test_a_damaged_copy_in_the_cache_is_fetched_again(s3_server: S3Server, tmp_path: Path, source: Path) -> None:
    store = open_store(s3_server.uri, cache=tmp_path / "cache")
    store.put(KEY, source, SHA256)
    store.get(KEY, SHA256, len(CONTENT)).write_bytes(b"rotten")
    assert store.get(KEY, SHA256, len(CONTENT)).read_bytes() == CONTENT


def test_a_large_object_goes_in_parts(s3_server: S3Server, tmp_path: Path) -> None:
    content = os.urandom(20 << 20)  # boto3 cuts from 8 MiB on
    sha256 = hashlib.sha256(content).hexdigest()
    (tmp_path / "large").write_bytes(content)
    store = open_store(s3_server.uri, cache=tmp_path / "cache")
    store.put(shard_key(sha256), tmp_path / "large", sha256)
    assert store.get(shard_key(sha256), sha256, len(content)).read_bytes() == content


@dataclass
class Fault:
    """What a server does in place of an answer."""

    status: int = 0
    """An error of this status."""
    cut: bool = False
    """Half of the body, then the end of the connection."""
    lost: bool = False
    """It does as it is asked, and never says so."""
    trickle: bool = False
    """A byte now and then."""
    whole: bool = False
    """All of the object, whatever range is asked for."""


class Misbehaving:
    """Stands before an S3 server; a request of a kind meets the faults of that kind, one after the other, then none."""

    def __init__(self, server: S3Server, **faults: list[Fault]) -> None:
        self.asked: list[tuple[str, str | None]] = []
        """Method and range of each request."""
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                proxy.asked.append((self.command, self.headers["Range"]))
                left = faults.get(self.command, [])
                fault = left.pop(0) if left else Fault()
                content = self.rfile.read(int(self.headers["Content-Length"] or 0))
                if fault.status:
                    self.send_error(fault.status)
                    return
                forward = http.client.HTTPConnection(server.endpoint.removeprefix("http://"))
                forward.request(self.command, self.path, content, dict(self.headers))
                answer = forward.getresponse()
                body = answer.read()
                forward.close()
                if fault.whole:
                    body = server.read("/".join(self.path.split("/")[2:]))
                length = answer.headers.get("Content-Length") if self.command == "HEAD" else len(body)
                self.close_connection = True
                if fault.lost:
                    return
                self.send_response(answer.status)
                self.send_header("Content-Length", str(length or 0))
                self.end_headers()
                self.give(body[: len(body) // 2] if fault.cut else body, fault.trickle)

            def give(self, body: bytes, slowly: bool) -> None:
                for start in range(0, len(body), piece := 1 if slowly else _CHUNK):
                    try:
                        self.wfile.write(body[start : start + piece])
                    except OSError:  # nobody listens any more
                        return
                    if slowly and proxy.ending.wait(0.2):
                        return

            do_GET = do_HEAD = do_PUT = do_DELETE = answer  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                """Keeps quiet."""

        self.ending = threading.Event()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def through(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[Store, Misbehaving]]]:
    """Gives a store whose server misbehaves as told, and pauses that a test can wait for."""
    monkeypatch.setattr("m2m.store.s3.WORKING", Patience(tries=4, pause=0.01, seconds=20.0))
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _: None))
    with ExitStack() as stack:

        def made(**faults: list[Fault]) -> tuple[Store, Misbehaving]:
            proxy = stack.enter_context(Misbehaving(s3_server, **faults))
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            return open_store(s3_server.uri, cache=tmp_path / "cache"), proxy

        yield made


Through = Callable[..., tuple[Store, Misbehaving]]


@pytest.mark.parametrize("status", [429, 500])
def test_a_busy_server_is_asked_again(
    status: int, through: Through, s3_server: S3Server, source: Path, tmp_path: Path
) -> None:
    busy = [Fault(status=status)] * 2
    store, _ = through(PUT=[*busy], GET=[*busy], HEAD=[*busy], DELETE=[*busy])
    store.check()
    assert s3_server.keys() == []
    store, _ = through(PUT=[*busy], GET=[*busy], HEAD=[*busy], DELETE=[*busy])
    assert not store.exists(KEY, 1)
    store.put(KEY, source, SHA256)
    assert store.get(KEY, SHA256, len(CONTENT)).read_bytes() == CONTENT
    store.download(KEY, tmp_path / "copy")


@pytest.mark.parametrize("status", [503])
def test_a_server_that_stays_busy_is_an_outside_cause(
    status: int, through: Through, s3_server: S3Server, source: Path, tmp_path: Path
) -> None:
    s3_server.write(KEY, CONTENT)
    for name in ("check", "exists", "put", "get", "download"):
        busy = [Fault(status=status)] * 99
        store, proxy = through(PUT=[*busy], GET=[*busy], HEAD=[*busy], DELETE=[*busy])
        arguments = {
            "exists": (KEY, 1),
            "put": (KEY, source, SHA256),
            "get": (KEY, SHA256, len(CONTENT)),
            "download": (KEY, tmp_path / "copy"),
        }
        with pytest.raises(OutsideError, match=f"the server is busy or failing \\({status}.*; try again later"):
            getattr(store, name)(*arguments.get(name, ()))
        assert len(proxy.asked) >= 4
    assert not (tmp_path / "copy").exists()


def test_a_refusal_is_not_repeated(through: Through, source: Path) -> None:
    store, proxy = through(HEAD=[Fault(status=403)] * 9)
    with pytest.raises(UserError, match="may not read and write there") as caught:
        store.put(KEY, source, SHA256)
    assert not isinstance(caught.value, OutsideError)
    assert len(proxy.asked) == 1


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("cuts", [0, 3, 9])
def test_a_cut_connection_is_taken_up_where_it_was(
    cuts: int, whole: bool, through: Through, s3_server: S3Server, tmp_path: Path
) -> None:
    content = os.urandom(5 << 20)
    sha256 = hashlib.sha256(content).hexdigest()
    s3_server.write(shard_key(sha256), content)
    store, proxy = through(GET=[Fault(cut=True, whole=whole)] * cuts + [Fault(whole=whole)] * 9)
    if cuts < 4:
        assert store.get(shard_key(sha256), sha256, len(content)).read_bytes() == content
    else:
        with pytest.raises(OutsideError, match="the endpoint does not answer"):
            store.get(shard_key(sha256), sha256, len(content))
        assert not (tmp_path / "cache" / shard_key(sha256)).exists()
    begins = [None, "bytes=2621440-", "bytes=3932160-", "bytes=4587520-"]
    if not whole:
        assert [wanted for method, wanted in proxy.asked if method == "GET"] == begins[: cuts + 1]


@pytest.mark.parametrize("lost", [1, 99])
def test_an_answer_that_is_lost_is_no_failure(lost: int, through: Through, s3_server: S3Server, source: Path) -> None:
    store, proxy = through(PUT=[Fault(lost=True)] * lost)
    store.put(KEY, source, SHA256)
    assert s3_server.read(KEY) == CONTENT
    assert len([method for method, _ in proxy.asked if method == "PUT"]) == 2, "botocore's own second try"


def test_a_trickle_ends(
    through: Through, s3_server: S3Server, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m2m.store.s3.WORKING", Patience(tries=4, pause=0.01, seconds=1.0))
    s3_server.write(KEY, CONTENT)
    store, _ = through(GET=[Fault(trickle=True)] * 9)
    for read in (
        lambda: store.get(KEY, SHA256, len(CONTENT)),
        lambda: store.download(KEY, tmp_path / "copy"),
        lambda: store.put(KEY, source, SHA256),
    ):
        started = time.monotonic()
        with pytest.raises(OutsideError, match=f"too slow: not done with {KEY} in 1 s"):
            read()
        assert time.monotonic() - started < 5
    assert not (tmp_path / "copy").exists()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_check_of_a_trickling_server_ends(through: Through, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2m.store.s3.CHECKING", Patience(tries=4, pause=0.01, seconds=0.5))
    store, _ = through(GET=[Fault(trickle=True)] * 9)
    with pytest.raises(OutsideError, match="too slow"):
        store.check()


def test_a_trickle_holds_up_no_end_of_a_process(through: Through, s3_server: S3Server, tmp_path: Path) -> None:
    s3_server.write(KEY, CONTENT)
    through(GET=[Fault(trickle=True)] * 9)
    code = f"""
        from pathlib import Path
        from m2m.store import open_store, s3
        s3.WORKING = s3.Patience(tries=2, pause=0.01, seconds=1.0)
        open_store({s3_server.uri!r}, cache=Path()).download({KEY!r}, Path({str(tmp_path / "copy")!r}))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert "OutsideError" in ended.stderr


class Mute:
    """A server that takes connections and never answers."""

    def __enter__(self) -> str:
        self._socket = socket.create_server(("127.0.0.1", 0))
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._socket.close()


@contextmanager
def plain_web_server() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def assert_refused(uri: str, cache: Path, cause: str) -> None:
    """A check fails within ten seconds, in one line that names the cause and no secret."""
    started = time.monotonic()
    with pytest.raises(UserError, match=cause) as caught:
        open_store(uri, cache=cache).check()
    assert time.monotonic() - started < 10
    assert uri in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "cause"),
    [
        ("AWS_ACCESS_KEY_ID", "somebody", "does not know the access key; set AWS_ACCESS_KEY_ID"),
        ("AWS_SECRET_ACCESS_KEY", SECRET + "!", "the secret key is wrong; set AWS_SECRET_ACCESS_KEY"),
        (
            "AWS_ENDPOINT_URL",
            "http://127.0.0.1:1",
            "endpoint does not answer; start the server, or set AWS_ENDPOINT_URL",
        ),
        ("AWS_ENDPOINT_URL", f"http://me:{SECRET}@127.0.0.1:1", "endpoint does not answer"),
        ("AWS_ENDPOINT_URL", f"not an address {SECRET}", "AWS_ENDPOINT_URL is no address"),
        ("AWS_PROFILE", "nobody", "ProfileNotFound"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_named(
    variable: str, value: str, cause: str, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert_refused(s3_server.uri, tmp_path, cause)


def test_missing_keys_are_named(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert_refused(s3_server.uri, tmp_path, "no access key; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert_refused(s3_server.uri, tmp_path, "no access key; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")


@pytest.mark.usefixtures("s3_server")
def test_a_wrong_bucket_is_named(tmp_path: Path) -> None:
    assert_refused("s3://another/prefix", tmp_path, "there is no such bucket")
    assert_refused("s3://a+b", tmp_path, "no bucket can have this name")


def test_a_silent_server_is_named_in_time(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Mute() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert_refused(s3_server.uri, tmp_path, "the endpoint does not answer")


def test_another_kind_of_server_is_named(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with plain_web_server() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert_refused(s3_server.uri, tmp_path, "the endpoint is no S3 server; set AWS_ENDPOINT_URL")


def test_a_server_that_gives_back_other_bytes_than_it_took_is_found_out(
    s3_server: S3Server, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(s3_server.uri, cache=tmp_path)
    assert isinstance(store, S3Store)
    monkeypatch.setattr(store, "_reading", lambda _, write: lambda: write(CONTENT[:-1] + b"!"))
    with pytest.raises(UserError, match=f"{KEY}: .* twice gave back other bytes"):
        store.put(KEY, source, SHA256)
    assert s3_server.keys() == []
