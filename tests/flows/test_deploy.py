"""The process that serves the flows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_starts_no_server_of_prefect_that_anybody_may_use(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    served = subprocess.run(
        [sys.executable, "-m", "flows.deploy", "serve"],
        cwd=ROOT,
        env={**environment, "PREFECT_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert served.returncode == 2
    assert served.stderr.startswith("m2m: PREFECT_API_URL is not set; expected ")
    assert len(served.stderr.splitlines()) == 1
