"""A store in S3, or in any server that speaks its protocol.

Address and keys come from the usual AWS variables and files, as boto3 reads them: ``AWS_ENDPOINT_URL``,
``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_DEFAULT_REGION``, and for servers that do not take the newer
checksums ``AWS_REQUEST_CHECKSUM_CALCULATION=when_required``.

What a busy or failing server answers (429, 5xx, a connection that breaks) is tried again, with random pauses and within
a bound of time; then it is an `OutsideError`, after which the same command may succeed.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import uniform
from secrets import token_hex
from typing import TypeVar
from urllib.parse import urlsplit

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)
from botocore.parsers import ResponseParserError

from m2m.errors import MADE_AGAIN, OutsideError, UserError
from m2m.files import has_content, new_file

Answer = TypeVar("Answer")

# A silent server is reported within ten seconds, and a busy one still has five for each answer.
_QUICK = Config(connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 1, "mode": "standard"})
# The response's own checksum is not asked for: every read is held against our SHA-256.
_PATIENT = Config(
    connect_timeout=5,
    read_timeout=60,
    retries={"total_max_attempts": 2, "mode": "standard"},  # for a part of a large file: `Patience` repeats the whole
    response_checksum_validation="when_required",
)
# Without threads of its own, which the end of the process would wait for however slowly a server takes its bytes.
_TRANSFER = TransferConfig(use_threads=False)
_CHUNK = 1 << 20
DRAFT_SECONDS = 24 * 3600
"""After which what looks like a fetch that goes on is what a kill left."""
SLOWEST = 256 << 10
"""Bytes a second: an object that comes or goes more slowly than this is given up."""


@dataclass(frozen=True)
class Patience:
    """How often something is tried, and for how long in all."""

    tries: int
    pause: float
    """Seconds before the second try, give or take a half; each further pause is twice as long."""
    seconds: float
    """For all tries together, beside the time that `SLOWEST` allows for the bytes."""


CHECKING = Patience(tries=4, pause=0.3, seconds=7.0)
WORKING = Patience(tries=5, pause=1.0, seconds=120.0)

_NO_RIGHT = "the access key may not read and write there; ask for the right, or set another AWS_ACCESS_KEY_ID"
_NOT_S3 = "the endpoint is no S3 server; set AWS_ENDPOINT_URL"
_OTHER_REGION = "the bucket is in another region; set AWS_DEFAULT_REGION"
_CAUSES = {
    "InvalidAccessKeyId": "the server does not know the access key; set AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key is wrong; set AWS_SECRET_ACCESS_KEY",
    "InvalidToken": "the session token is wrong; set AWS_SESSION_TOKEN",
    "ExpiredToken": "the session token has expired; set AWS_SESSION_TOKEN",
    "AccessDenied": _NO_RIGHT,
    "403": _NO_RIGHT,
    "NoSuchBucket": "there is no such bucket; create it, or set M2M_STORE to another",
    "PermanentRedirect": _OTHER_REGION,
    "AuthorizationHeaderMalformed": _OTHER_REGION,
    "RequestTimeTooSkewed": "the clock of this machine is wrong; set it",
    "404": _NOT_S3,
    "405": _NOT_S3,
    "501": _NOT_S3,
}
_ABSENT = ("404", "NoSuchKey")
_PASSING = {"BadDigest", "IncompleteBody", "OperationAborted", "RequestTimeout", "SlowDown", "Throttling"}
"""Refusals that the next try may not meet, whatever their status."""


class S3Store:
    """Keeps each object under its key in a bucket, below a prefix; what is fetched stays in a cache folder.

    Args:
        cache_bytes: about how much stays there, and an eighth more for each process; what was used longest ago goes.
    """

    def __init__(self, *, bucket: str, prefix: str, cache: Path, cache_bytes: int) -> None:
        self._bucket, self._prefix, self._cache = bucket, prefix, cache
        self._cache_bytes, self._new_bytes = cache_bytes, cache_bytes  # at first, what others left is looked at
        self._where = self.uri
        try:
            with self._explained():
                session = boto3.Session()
                self._quick = session.client("s3", config=_QUICK)
                self._client = session.client("s3", config=_PATIENT)
        except ValueError as error:  # botocore's answer to a malformed address
            raise UserError(f"store {self.uri}: AWS_ENDPOINT_URL is no address; expected http://host:port") from error
        endpoint = urlsplit(self._client.meta.endpoint_url)
        port = f":{endpoint.port}" if endpoint.port else ""
        self._where = f"{self.uri} at {endpoint.scheme}://{endpoint.hostname}{port}"

    def __reduce__(self) -> tuple[partial[S3Store], tuple[()]]:
        place = partial(S3Store, bucket=self._bucket, prefix=self._prefix)
        return partial(place, cache=self._cache.absolute(), cache_bytes=self._cache_bytes), ()

    @property
    def uri(self) -> str:
        return f"s3://{self._bucket}" + (f"/{self._prefix}" if self._prefix else "")

    def check(self) -> None:
        probe = self._object(f".check-{token_hex(6)}")
        deadline = time.monotonic() + CHECKING.seconds
        # Writes and reads say in their answer's body what is wrong; the answer to a HEAD request has none.
        for request in (
            lambda: self._quick.put_object(**probe, Body=b"m2m"),
            lambda: self._quick.get_object(**probe)["Body"].read(),
            lambda: self._quick.delete_object(**probe),
        ):
            self._ask(request, patience=replace(CHECKING, seconds=deadline - time.monotonic()))

    def exists(self, key: str, size: int) -> bool:
        return self._length(key) == size

    def put(self, key: str, path: Path, sha256: str) -> None:
        size = path.stat().st_size

        def send() -> None:
            try:
                # boto3 sends large files in parts, and takes the parts back when one fails.
                with self._explained(), path.open("rb") as file:
                    self._client.upload_fileobj(file, *self._object(key).values(), Config=_TRANSFER)
            except OutsideError:
                if not self._holds(key, sha256, size, Patience(1, 0, WORKING.seconds)):
                    raise  # else the answer was lost, not the object

        if self._holds(key, sha256, size):
            return
        for _ in range(2):
            self._ask(send, size=size)
            if self._holds(key, sha256, size):
                return
        self._ask(lambda: self._client.delete_object(**self._object(key)))
        raise UserError(f"{key}: store {self._where} twice gave back other bytes than {path} holds; nothing was stored")

    def get(self, key: str, sha256: str, size: int) -> Path:
        path = self._cache / key
        with suppress(FileNotFoundError):
            os.utime(path)  # before it is read: what is in use is not what was used longest ago
        if has_content(path, sha256, size):
            return path
        for _ in range(2):
            self._fetch(key, path, size)
            if has_content(path, sha256, size):
                self._make_room(path, size)
                return path
        path.unlink(missing_ok=True)
        raise UserError(f"{key} in the store {self._where} is damaged; delete it and {MADE_AGAIN}")

    def download(self, key: str, path: Path) -> None:
        self._fetch(key, path, self._length(key) or 0)

    def objects(self, prefix: str) -> Iterator[tuple[str, int]]:
        place = self._object(prefix)
        wanted, more = {"Bucket": place["Bucket"], "Prefix": place["Key"]}, dict[str, str]()
        while True:
            page = self._ask(lambda: self._client.list_objects_v2(**wanted, **more))  # noqa: B023  # asked at once
            for found in page.get("Contents", ()):
                yield found["Key"].removeprefix(place["Key"].removesuffix(prefix)), found["Size"]
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def remove(self, key: str) -> None:
        self._ask(lambda: self._client.delete_object(**self._object(key)))
        (self._cache / key).unlink(missing_ok=True)

    def _make_room(self, newest: Path, size: int) -> None:
        """Now and then, since looking takes a while, removes the files that were used longest ago.

        Who has one of them open goes on reading it. Other processes may do the same at the same time.
        """
        self._new_bytes += size
        if self._new_bytes < self._cache_bytes // 8:
            return
        self._new_bytes, now, files = 0, time.time(), []
        for path in self._cache.rglob("*"):
            with suppress(FileNotFoundError):
                known = path.stat()
                # Hidden is what somebody is fetching, or what a kill left.
                is_draft = path.name.startswith(".") and now - known.st_mtime < DRAFT_SECONDS
                if stat.S_ISREG(known.st_mode) and path != newest and not is_draft:
                    files.append((known.st_mtime_ns, known.st_size, path))
        spare = size + sum(of_file for _, of_file, _ in files) - self._cache_bytes
        for _, of_file, path in sorted(files):
            if spare <= 0:
                return
            path.unlink(missing_ok=True)
            spare -= of_file

    def _object(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": f"{self._prefix}/{key}" if self._prefix else key}

    def _length(self, key: str, patience: Patience | None = None) -> int | None:
        """Bytes of an object; None if there is none."""

        def look() -> int | None:
            try:
                return int(self._client.head_object(**self._object(key))["ContentLength"])
            except ClientError as error:
                if _code(error) not in _ABSENT:
                    raise
                return None

        return self._ask(look, patience=patience)

    def _holds(self, key: str, sha256: str, size: int, patience: Patience | None = None) -> bool:
        if self._length(key, patience) != size:
            return False
        digest = hashlib.sha256()
        self._ask(self._reading(key, digest.update), key=key, size=size, patience=patience)
        return digest.hexdigest() == sha256

    def _fetch(self, key: str, path: Path, size: int) -> None:
        """Copies an object of about `size` bytes to a file."""
        with new_file(path) as draft, draft.open("wb") as file:
            self._ask(self._reading(key, file.write), key=key, size=size)

    def _reading(self, key: str, write: Callable[[bytes], object]) -> Callable[[], None]:
        """What hands an object's bytes to `write`; called again after a cut, it goes on where it was."""
        position = length = 0

        def read() -> None:
            nonlocal position, length
            wanted = {"Range": f"bytes={position}-"} if position else {}  # no range fits an empty object
            answer = self._client.get_object(**self._object(key), **wanted)
            length = length or answer["ContentLength"]
            # A server may have no use for ranges, and begin at the beginning; not all that have say so by status 206.
            known = position if answer["ContentLength"] == length else 0
            with closing(answer["Body"]) as body:
                for chunk in body.iter_chunks(_CHUNK):
                    new = chunk[known:]
                    known = max(0, known - len(chunk))
                    position += len(new)
                    write(new)

        return read

    def _ask(
        self, request: Callable[[], Answer], *, key: str = "", size: int = 0, patience: Patience | None = None
    ) -> Answer:
        """The answer to a request, which is made again while the reason why there is none lies outside.

        Args:
            key: of the object that must be there.
            size: bytes that are to come or go.

        Raises:
            OutsideError: no try succeeded, or the time is up.
            UserError: the store refuses.
        """
        patience = patience or WORKING
        seconds = patience.seconds + size / SLOWEST
        deadline = time.monotonic() + seconds

        def explained() -> Answer:
            with self._explained(key):
                return request()

        last = OutsideError(f"store {self._where}: too slow: not done with {key or 'a request'} in {seconds:.0f} s")
        for attempt in range(patience.tries):
            if attempt:
                # Random, so that many who were refused at one moment do not all come back at one moment.
                pause = patience.pause * 2 ** (attempt - 1) * uniform(0.5, 1.5)
                time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
            try:
                return within(deadline - time.monotonic(), explained)
            except TimeoutError:
                break
            except OutsideError as error:
                last = error
        raise last

    @contextmanager
    def _explained(self, key: str = "") -> Iterator[None]:
        """Says in one line which of address, keys and bucket is wrong. No message of botocore's is passed on whole."""
        try:
            yield
        except (BotoCoreError, ClientError, ResponseParserError) as error:
            code = _code(error) if isinstance(error, ClientError) else ""
            if key and code in _ABSENT:
                raise UserError(f"{key} is not in the store {self._where}; {MADE_AGAIN}") from error
            kind, text = _in_words(error, code, key)
            raise kind(f"store {self._where}: {text}") from error


def _in_words(error: Exception, code: str, key: str) -> tuple[type[UserError], str]:
    """What an error of botocore's, with the code of a server's refusal, means for a person."""
    match error:
        case ClientError():
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if status in (408, 429) or (status >= 500 and status != 501) or code in _PASSING:
                answer = f"{status} {code}" if code != str(status) else code
                return OutsideError, f"the server is busy or failing ({answer}); try again later"
            return UserError, _CAUSES.get(code, " ".join(["it refuses", *filter(None, [key]), "with", code]))
        case ConnectionError() | HTTPClientError() | IncompleteReadError():
            return OutsideError, "the endpoint does not answer; start the server, or set AWS_ENDPOINT_URL"
        case NoCredentialsError() | PartialCredentialsError():
            return UserError, "no access key; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        case ParamValidationError():
            return UserError, "no bucket can have this name; set M2M_STORE to another"
        case ResponseParserError():
            return UserError, _NOT_S3
        case _:
            return UserError, f"cannot be used ({type(error).__name__})"


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "no code"))


def within(seconds: float, work: Callable[[], Answer]) -> Answer:
    """What `work` gives.

    It runs in a thread that can be left behind: time limits of sockets begin anew with each byte.

    Raises:
        TimeoutError: it takes longer.
    """
    outcome: Future[Answer] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="store", daemon=True).start()
    return outcome.result(max(0.0, seconds))
