"""A store in S3, or in any server that speaks its protocol.

Address and keys come from the usual AWS variables and files, as boto3 reads them: ``AWS_ENDPOINT_URL``,
``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_DEFAULT_REGION``, and for servers that do not take the newer
checksums ``AWS_REQUEST_CHECKSUM_CALCULATION=when_required``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from urllib.parse import urlsplit

import boto3
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
from m2m.files import file_digest, new_file

# One attempt, so that a silent server is reported within ten seconds and a busy one still has five.
_QUICK = Config(connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 1, "mode": "standard"})
# The response's own checksum is not asked for: every read is held against our SHA-256.
_PATIENT = Config(
    connect_timeout=5,
    read_timeout=60,
    retries={"total_max_attempts": 4, "mode": "standard"},
    response_checksum_validation="when_required",
)
_CHUNK = 1 << 20

_NO_KEYS = "no access key; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_NO_RIGHT = "the access key may not read and write there; ask for the right, or set another AWS_ACCESS_KEY_ID"
_NO_ANSWER = "the endpoint does not answer; start the server, or set AWS_ENDPOINT_URL"
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


class S3Store:
    """Keeps each object under its key in a bucket, below a prefix; what is fetched stays in a cache folder."""

    def __init__(self, *, bucket: str, prefix: str, cache: Path) -> None:
        self._bucket, self._prefix, self._cache = bucket, prefix, cache
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

    @property
    def uri(self) -> str:
        return f"s3://{self._bucket}" + (f"/{self._prefix}" if self._prefix else "")

    def check(self) -> None:
        probe = self._object(f".check-{token_hex(6)}")
        with self._explained():
            # Writes and reads say in their answer's body what is wrong; the answer to a HEAD request has none.
            self._quick.put_object(**probe, Body=b"m2m")
            self._quick.get_object(**probe)["Body"].read()
            self._quick.delete_object(**probe)

    def exists(self, key: str, size: int) -> bool:
        with self._explained():
            try:
                answer = self._client.head_object(**self._object(key))
            except ClientError as error:
                if _code(error) not in _ABSENT:
                    raise
                return False
        return bool(answer["ContentLength"] == size)

    def put(self, key: str, path: Path, sha256: str) -> None:
        size = path.stat().st_size
        if self._holds(key, sha256, size):
            return
        for _ in range(2):
            # boto3 sends large files in parts, and takes the parts back when one fails.
            with self._explained(), path.open("rb") as file:
                self._client.upload_fileobj(file, *self._object(key).values())
            if self._holds(key, sha256, size):
                return
        self.delete(key)
        raise UserError(f"{key}: store {self._where} twice gave back other bytes than {path} holds; nothing was stored")

    def get(self, key: str, sha256: str, size: int) -> Path:
        path = self._cache / key
        if path.is_file() and _is_intact(path, sha256, size):
            return path
        for _ in range(2):
            self.download(key, path)
            if _is_intact(path, sha256, size):
                return path
        path.unlink()
        raise UserError(f"{key} in the store {self._where} is damaged; delete it and {MADE_AGAIN}")

    def download(self, key: str, path: Path) -> None:
        with new_file(path) as draft, draft.open("wb") as file:
            for chunk in self._chunks(key):
                file.write(chunk)

    def delete(self, key: str) -> None:
        with self._explained():
            self._client.delete_object(**self._object(key))

    def _object(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": f"{self._prefix}/{key}" if self._prefix else key}

    def _holds(self, key: str, sha256: str, size: int) -> bool:
        if not self.exists(key, size):
            return False
        digest = hashlib.sha256()
        for chunk in self._chunks(key):
            digest.update(chunk)
        return digest.hexdigest() == sha256

    def _chunks(self, key: str) -> Iterator[bytes]:
        """The object's bytes. A cut connection is taken up once more where it was: botocore repeats no reads."""
        position = 0
        with self._explained(key):
            for attempt in range(2):
                try:
                    rest = {"Range": f"bytes={position}-"} if position else {}  # no range fits an empty object
                    answer = self._client.get_object(**self._object(key), **rest)
                    for chunk in answer["Body"].iter_chunks(_CHUNK):
                        position += len(chunk)
                        yield chunk
                    return
                except (HTTPClientError, IncompleteReadError):
                    if attempt:
                        raise

    @contextmanager
    def _explained(self, key: str = "") -> Iterator[None]:
        """Says in one line which of address, keys and bucket is wrong. No message of botocore's is passed on whole."""
        try:
            yield
        except ClientError as error:
            code = _code(error)
            if key and code in _ABSENT:
                text = f"{key} is not in the store {self._where}; {MADE_AGAIN}"
                raise UserError(text) from error
            refusal = f"it refuses {key} with {code}" if key else f"it refuses with {code}"
            raise UserError(f"store {self._where}: {_CAUSES.get(code, refusal)}") from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise UserError(f"store {self._where}: {_NO_KEYS}") from error
        except ParamValidationError as error:
            raise UserError(f"store {self._where}: no bucket can have this name; set M2M_STORE to another") from error
        except (ConnectionError, HTTPClientError, IncompleteReadError) as error:
            raise OutsideError(f"store {self._where}: {_NO_ANSWER}") from error
        except ResponseParserError as error:
            raise UserError(f"store {self._where}: {_NOT_S3}") from error
        except BotoCoreError as error:
            raise UserError(f"store {self._where}: cannot be used ({type(error).__name__})") from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "no code"))


def _is_intact(path: Path, sha256: str, size: int) -> bool:
    return path.stat().st_size == size and file_digest(path) == sha256
