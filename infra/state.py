"""The local stack's processes, found again, and what it remembers in files: keys, ports, and the file for a shell.

Its processes outlive the command that started them, and are found again: these, all of these, and no others. Each
server is started with a mark in its environment, which every process it starts inherits. The mark says whose a process
is without trusting a number: a process id that a file remembers may belong to somebody else after a crash or a reboot,
and the file itself may be gone. It also finds what a killed server left behind.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import socket
import subprocess
import time
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypedDict

import psutil
from filelock import FileLock, Timeout

from infra.servers import BUCKET, HOST, PORTS, Server, Stack, client_environment
from m2m.errors import UserError
from m2m.files import make_parent, new_file, write_atomically

MARK = "M2M_STACK"


class Started(TypedDict):
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


def read_records(home: Path) -> dict[str, Started]:
    """The servers that were started; none where the file is gone, as after `make clean`."""
    try:
        records: dict[str, Started] = json.loads(_records_file(home).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return records


def write_records(home: Path, records: Mapping[str, Started]) -> None:
    write_atomically(_records_file(home), json.dumps(records, indent=1).encode())


def forget(home: Path) -> None:
    """Removes what would be false once the servers are down."""
    for file in (_records_file(home), shell_file(home)):
        file.unlink(missing_ok=True)


def start(server: Server, stack: Stack, records: dict[str, Started]) -> subprocess.Popen[bytes]:
    """Starts a server of a stack in a session of its own, which no Ctrl-C or closed terminal reaches; records it."""
    since = time.time()
    with stack.log(server.name).open("wb") as output:
        process = subprocess.Popen(
            server.command,
            cwd=server.at,
            env={**server.environment, MARK: _mark(server.name, stack.home)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    records[server.name] = {"pid": process.pid, "port": stack.ports.get(server.name), "started": since}
    write_records(stack.home, records)
    return process


def find(name: str, home: Path) -> dict[int, Any]:
    """The running processes of one server and all that it started, by their id."""
    return {process.pid: process for process in psutil.process_iter() if _mark_of(process) == _mark(name, home)}


def end(name: str, home: Path, *, leader: int | None, patience: float) -> int:
    """Ends a server and whatever it started; says how many processes these were.

    Args:
        leader: the server's own process, if known: it is asked first, and may settle what it has begun.
        patience: seconds that each is given before it is killed.
    """
    found = find(name, home)
    _end(name, home, patience, among={leader} if leader in found else None)
    _end(name, home, patience)
    # What is killed may have started something in its last moment.
    while find(name, home):
        _end(name, home, 1.0, kill=True)
    return len(found)


def holder(port: int) -> str:
    """Who listens on a TCP port, as far as this user may know."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()}, process {connection.pid}"
    except psutil.Error:  # not everywhere may one ask for the sockets of others
        pass
    return "another process"


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
    expected = "two lines, an access key and a secret key; delete it, and make up makes new ones"
    new = f"m2m{secrets.token_hex(8)}\n{secrets.token_hex(20)}"
    access, secret = _read_or_make(home / "data" / "s3.keys", new, r"\S+\s+\S+", expected).split()
    return access, secret


def prefect_key_file(home: Path) -> Path:
    return home / "data" / "prefect.key"


def read_or_make_prefect_key(home: Path) -> str:
    """What Prefect's server asks for, ``user:password``: random, made once, in a file that only its owner can read."""
    expected = "one line, user:password; delete it, and make up makes a new one"
    return _read_or_make(prefect_key_file(home), f"m2m:{secrets.token_hex(20)}", r"[!-9;-~]+:[!-~]+", expected)


def _read_or_make(file: Path, new: str, form: str, expected: str) -> str:
    if not file.exists():
        write_private(file, f"{new}\n")
    text = file.read_text().strip()
    if not re.fullmatch(form, text):
        raise UserError(f"{file}: expected {expected}")
    return text


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


def _mark(name: str, home: Path) -> str:
    return f"{name}@{home}"


def _mark_of(process: Any) -> str | None:
    try:
        mark: str | None = process.environ().get(MARK)
    except (psutil.Error, OSError):  # gone, a zombie, or of another user
        return None
    return None if process.pid == os.getpid() else mark


def _end(name: str, home: Path, seconds: float, *, among: Container[int] | None = None, kill: bool = False) -> None:
    """Asks processes of a server to end, or kills them, and waits some seconds until none of them is left."""
    deadline = time.monotonic() + seconds
    for pid, process in find(name, home).items():
        if among is None or pid in among:
            with suppress(psutil.NoSuchProcess):
                # psutil compares start times first, so that a number which changed hands meanwhile is left alone.
                process.kill() if kill else process.terminate()
    while any(among is None or pid in among for pid in find(name, home)) and time.monotonic() < deadline:
        time.sleep(0.1)
