"""What the local stack remembers in files: keys, ports, which process is which server, and the file for a shell."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

from filelock import FileLock, Timeout

from infra.processes import holder
from infra.servers import BUCKET, HOST, PORTS, Stack, client_environment
from m2m.errors import UserError
from m2m.files import make_parent, new_file, write_atomically


class Record(TypedDict):
    """Of a server that was started."""

    pid: int
    port: int | None
    started: float
    """Seconds since 1970."""


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Keeps a second start or stop of the same stack out.

    Raises:
        UserError: one is at work.
    """
    file = home / "work" / "stack" / "lock"
    make_parent(file)
    try:
        with FileLock(file, timeout=0):
            yield
    except Timeout as error:
        raise UserError("another make up or make down is at work here; wait until it is done") from error


def read_records(home: Path) -> dict[str, Record]:
    """The servers that were started; none where the file is gone, as after `make clean`."""
    try:
        records: dict[str, Record] = json.loads(_records_file(home).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return records


def write_records(home: Path, records: Mapping[str, Record]) -> None:
    write_atomically(_records_file(home), json.dumps(records, indent=1).encode())


def forget(home: Path) -> None:
    """Removes what would be false once the servers are down."""
    for file in (_records_file(home), shell_file(home)):
        file.unlink(missing_ok=True)


def read_ports(environment: Mapping[str, str]) -> dict[str, int]:
    """The ports that the environment names, or the usual ones.

    Raises:
        UserError: one of them is no port, or two are the same.
    """
    ports = {}
    for name, (variable, usual) in PORTS.items():
        text = environment.get(variable) or str(usual)
        if not re.fullmatch(r"[1-9]\d{0,4}", text) or int(text) > 65535:
            raise UserError(f"{variable} is {text!r}; expected a port from 1 to 65535 such as {usual}")
        ports[name] = int(text)
    if len(set(ports.values())) < len(ports):
        chosen = ", ".join(f"{PORTS[name][0]}={port}" for name, port in ports.items())
        raise UserError(f"each server needs a port of its own; these are: {chosen}")
    return ports


def check_ports(ports: Mapping[str, int]) -> None:
    """Raises `UserError`, one line that names all ports that are taken and by whom, if any is."""
    taken = {name: port for name, port in ports.items() if not _is_free(port)}
    if taken:
        named = ", ".join(f"{port} for {name} (by {holder(port)})" for name, port in taken.items())
        others = " ".join(f"{PORTS[name][0]}=…" for name in taken)
        raise UserError(f"taken on {HOST}: port {named}; end what holds it, or choose another: {others} make up")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the servers do: a connection that has just been closed does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def read_or_make_keys(home: Path) -> tuple[str, str]:
    """Access key and secret key of the S3 server: random, made once, in a file that only its owner can read."""
    file = home / "data" / "s3.keys"
    if not file.exists():
        write_private(file, f"m2m{secrets.token_hex(8)}\n{secrets.token_hex(20)}\n")
    keys = file.read_text().split()
    if len(keys) != 2:
        raise UserError(
            f"{file}: expected two lines, an access key and a secret key; delete it, and make up makes new ones"
        )
    return keys[0], keys[1]


def prefect_key_file(home: Path) -> Path:
    return home / "data" / "prefect.key"


def read_or_make_prefect_key(home: Path) -> str:
    """What Prefect's server asks for, ``user:password``: random, made once, in a file that only its owner can read."""
    file = prefect_key_file(home)
    if not file.exists():
        write_private(file, f"m2m:{secrets.token_hex(20)}\n")
    key = file.read_text().strip()
    if not re.fullmatch(r"[!-9;-~]+:[!-~]+", key):
        raise UserError(f"{file}: expected one line, user:password; delete it, and make up makes a new one")
    return key


def make_bucket(home: Path) -> None:
    """Makes the bucket, which *is* the folder ``data/store``.

    So a dataset made without the stack is there with it, and the other way round.
    """
    store = home / "data" / "store"
    make_parent(store / "shards")
    link = home / "data" / "s3" / BUCKET
    make_parent(link)
    if not link.exists():
        # The bucket and no folder in it: a folder that becomes empty, S3 has no use for, and rclone removes the link.
        link.symlink_to(Path("..", store.name), target_is_directory=True)


def keep_out_second_pages(stack: Stack) -> None:
    """Lets Prefect's server offer the first version of its pages only.

    The second asks a foreign host from the person's browser, analytics off or not, and no setting takes it away: a
    link to nowhere stands where its folder would be made.
    """
    link = stack.pages / "v2"
    make_parent(link)
    if not link.is_symlink():
        link.symlink_to("kept-out")


def shell_file(home: Path) -> Path:
    return home / "work" / "stack" / "env"


def write_shell_file(stack: Stack) -> None:
    """What points a shell at the stack; it holds the keys, so only its owner can read it."""
    variables = client_environment(stack)
    lines = [
        "# Points a shell at the local stack; made by make up, removed by make down.",
        "unset AWS_PROFILE AWS_SESSION_TOKEN",
        *(f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items())),
    ]
    write_private(shell_file(stack.home), "\n".join(lines) + "\n")


def write_private(path: Path, content: str) -> None:
    """Writes a file that was never readable for others, not for a moment."""
    with new_file(path) as draft:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(content)


def _records_file(home: Path) -> Path:
    return home / "work" / "stack" / "servers.json"
