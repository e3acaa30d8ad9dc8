"""How long one waits before anything happens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Row
from benchmarks.setting import Setting
from m2m.settings import TELEMETRY_OFF

BIN = Path(sys.executable).parent


def rows(setting: Setting) -> Iterator[Row]:
    """Seconds of whole processes, against Python's own start. A pipeline is timed only where it is up to date."""
    nothing = (sys.executable, "-c", "pass")
    works = {"import": (sys.executable, "-c", "import m2m"), "help": (sys.executable, "-m", "m2m.cli", "--help")}
    if _call(str(BIN / "dvc"), "status", "--quiet").returncode == 0:
        works["repro"] = (str(BIN / "dvc"), "repro")
    else:
        print("start/repro is left out: the pipeline is not up to date; make repro first", file=sys.stderr)
    for name, command in works.items():
        ours, other = setting.seconds(lambda command=command: _call(*command), lambda: _call(*nothing))  # type: ignore[misc]
        yield Row.of(f"start/{name}", ours, other, unit="s", kind="wall")


def _call(*command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, capture_output=True, check=False, env={**os.environ, **TELEMETRY_OFF})
