"""Damaged files for readers of foreign bytes: seeded mutations of good ones, read in a process of bounded memory.

A reader may give a right result or one clear line (`UserError`). Any other exception, the end of the process and
memory beyond the bound are faults. ``python -m tests.mutations MODULE:FUNCTION --count N`` fuzzes one reader by hand;
tests call `survives`, which does the same, and ``make fuzz`` runs them with ten thousand files a reader.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

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
    command = [sys.executable, "-m", "tests.mutations", reader, "--count", str(count), "--seed", str(seed)]
    done = subprocess.run([*command, "--gigabytes", str(gigabytes)], capture_output=True, text=True)
    assert done.returncode == 0, f"{reader} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def main() -> None:
    """Read damaged files one after the other; each lies on disk under its own name while it is read."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("reader")
    options.add_argument("--count", type=int, default=10_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--gigabytes", type=float, default=4.0)
    asked = options.parse_args()
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
    main()
