"""Damaged files for readers of foreign bytes: seeded mutations of good ones, read in a process of bounded memory.

A reader may give a right result or one clear line (`UserError`). Any other exception, the end of the process and
memory beyond the bound are faults. ``python -m tests.mutations MODULE:FUNCTION --count N`` fuzzes one reader by hand;
tests call `survives`, which does the same, and ``make fuzz`` runs them with ten thousand files a reader.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TextIO

from m2m.errors import UserError

NUMBERS = [
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\x00\x00\x00\x00",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"-1",
    b"1e999",
    b"NaN",
]
TEXTS = [
    b"",
    b"\n",
    b"\r",
    b"\xe2\x80\xa8",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\\ud800",
    b"\\u0000",
    b"9" * 5000,
    b"[" * 2000,
    b"null",
    b"../",
]

Reader = tuple[bytes, str, Callable[[Path], object]]
"""A good file's bytes, the file's name, and what reads it."""


def mutate(good: bytes, chance: random.Random) -> bytes:
    """``good`` with one to four faults: flipped bits, odd numbers and texts, parts left out, doubled, moved."""
    data = bytearray(good)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        start = chance.randrange(len(data) + 1)
        stop = min(len(data), start + chance.choice((1, 1, 4, 16, 256, len(data))))
        match chance.randrange(8):
            case 0 | 1 | 2 if start < len(data):
                data[start] ^= 1 << chance.randrange(8)
            case 3:
                odd = chance.choice(NUMBERS)
                data[start : start + len(odd)] = odd
            case 4:
                data[start:start] = chance.choice(TEXTS)
            case 5:
                del data[start:stop]
            case 6:
                data[start:start] = data[start:stop]
            case _:
                where = chance.randrange(len(data) + 1)
                data[where : where + stop - start] = data[start:stop]
    return bytes(data)


def mutations(good: bytes, count: int, *, seed: int = 0) -> Iterator[bytes]:
    """``count`` damaged copies of ``good``: a function of the seed."""
    for index in range(count):
        yield mutate(good, random.Random(f"{seed}/{index}"))


def survives(reader: str, count: int, *, seed: int = 0, gigabytes: float = 4.0) -> None:
    """Fails with the first damaged file that a reader takes wrongly; it is kept, and its path told.

    Args:
        reader: ``module:function``, a function without arguments that gives a `Reader`.
        count: how many, unless the environment says so in `MUTATIONS`.
        gigabytes: the bound on the reading process's address space.
    """
    count = int(os.environ.get("MUTATIONS", count))
    with tempfile.TemporaryFile("w+") as said:
        ended = _server().run([reader, *map(str, ("--count", count, "--seed", seed, "--gigabytes", gigabytes))], said)
        said.seek(0)
        assert ended == 0, f"{reader} ended with {ended}:\n{said.read()[-6000:]}"


class Server:
    """A process that has imported what readers need, and of which each fuzzing is a fork: imports take seconds."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        with theirs:
            command = [sys.executable, "-m", "tests.mutations", f"--serve={theirs.fileno()}"]
            # It ends when the other end of the socket is gone.
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=Path(__file__).parents[1])

    def run(self, arguments: Sequence[str], said: TextIO) -> int:
        """The exit code of `main` with these arguments; what it says is written to a file."""
        socket.send_fds(self._socket, [json.dumps(arguments).encode()], [said.fileno()])
        answer = self._socket.recv(64)
        assert answer, "the process that fuzzes has ended"
        return int(answer)


_server = cache(Server)


def serve(channel: socket.socket) -> None:
    """Runs what `Server.run` asks for, one after the other, each in a fork."""
    while True:
        asked, files, _, _ = socket.recv_fds(channel, 4096, 1)
        if not asked:
            return
        arguments = json.loads(asked)
        importlib.import_module(arguments[0].partition(":")[0])
        child = os.fork()
        if not child:
            os.dup2(files[0], 1)
            os.dup2(files[0], 2)
            code = 1
            try:
                fuzz(arguments)
                code = 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        os.close(files[0])
        channel.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())


def fuzz(arguments: Sequence[str]) -> None:
    """Reads damaged files one after the other; each lies on disk under its own name while it is read."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("reader")
    options.add_argument("--count", type=int, default=10_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--gigabytes", type=float, default=4.0)
    asked = options.parse_args(arguments)
    module, name = asked.reader.split(":")
    good, file, read = getattr(importlib.import_module(module), name)()
    folder = Path(tempfile.mkdtemp(prefix="mutations-"))
    path = folder / file
    path.write_bytes(good)
    read(path)  # the good one is read, and with it everything is imported before memory is bounded
    bound = int(asked.gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    refused = 0
    for index, damaged in enumerate(mutations(good, asked.count, seed=asked.seed)):
        path.write_bytes(damaged)
        print(f"\rdamaged file {index} of {asked.count} is {path}", end="", flush=True)
        try:
            read(path)
        except UserError as error:
            refused += 1
            if "\n" in str(error):
                raise ValueError("more than one line") from error
    shutil.rmtree(folder)
    print(f"\n{asked.count} damaged files: {refused} refused in a line, {asked.count - refused} read")


if __name__ == "__main__":
    if sys.argv[1].startswith("--serve="):
        serve(socket.socket(fileno=int(sys.argv[1].partition("=")[2])))
    else:
        fuzz(sys.argv[1:])
