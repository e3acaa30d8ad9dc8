"""The judges that come with the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2m.evaluation.networks import Networks


@pytest.fixture(scope="session")
def committed() -> Networks:
    """Of the embedded world."""
    return Networks.load(Path(__file__).parents[2] / "models" / "foundation", device="cpu")
