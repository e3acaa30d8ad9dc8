"""Sets read by other processes, from files and from a server."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from benchmarks.loading import Loading
from tests.conftest import S3Server

pytestmark = pytest.mark.slow


def test_rows_over_s3_are_measured_and_nothing_stays(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shutil.which("curl"), "with which webdataset reads from a server"
    monkeypatch.setenv("M2M_STORE", s3_server.uri)
    monkeypatch.delenv("M2M_STREAMING_PYTHON", raising=False)
    rows = list(Loading(pixels=16, shards=2, sets=4, images=10, repeats=1).rows(tmp_path))
    names = [f"loading/16px/{variant}{place}" for place in ("", "/s3") for variant in ("self", "dino")]
    assert [row.name for row in rows] == [name + what for name in names for what in ("", "/cpu")]
    assert all(row.ours > 0 and row.other > 0 for row in rows)
    assert s3_server.keys() == []


@pytest.mark.skipif("M2M_STREAMING_PYTHON" not in os.environ, reason="it names an environment with mosaicml-streaming")
def test_streaming_reads_the_same_sets(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M2M_STORE", s3_server.uri)
    measured = list(Loading(pixels=16, shards=2, sets=4, images=10, repeats=1).measured(tmp_path))
    assert [[*found] for *_, found in measured] == [
        *[["ours", "webdataset", "streaming"]] * 2,
        *[["ours", "webdataset", "streaming", "streaming-checked"]] * 2,
    ]
