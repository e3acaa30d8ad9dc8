"""What a Prefect server of one's own may ask for, and what is left when the process that runs flows is killed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from tests.flows.serving import LIMIT, Run, events, plan, served, started_server

pytestmark = pytest.mark.timeout(900)  # several starts, on a machine that may be busy
PASSWORD = "m2m:a-word"
STAGES = {"captions", "generate", "train@self", "train@dino", "evaluate@self", "evaluate@dino", "report"}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[SyncPrefectClient]:
    """Of a server that asks for a password."""
    home = tmp_path / "prefect"
    home.mkdir()
    with (
        started_server(home, PREFECT_SERVER_API_AUTH_STRING=PASSWORD) as api,
        temporary_settings({PREFECT_API_URL: api, PREFECT_API_AUTH_STRING: PASSWORD}),
        get_client(sync_client=True) as client,
    ):
        yield client


@pytest.mark.slow
def test_behind_a_password_a_killed_run_is_taken_up_again(checkout: Path, client: SyncPrefectClient) -> None:
    """Every task run is counted at the server: with a password on, some were once lost without a word."""
    api = str(client.api_url).rstrip("/")
    with pytest.raises(HTTPError, match="401"):
        urlopen(f"{api}/flows/count")
    plan(checkout, **{"train@dino": {"seconds": 300}})
    with served(checkout, api, PREFECT_API_AUTH_STRING=PASSWORD) as server:
        first = Run(client, checkout)
        deadline = time.monotonic() + LIMIT
        # In the middle of one stage, with the one beside it in DVC's books.
        while first.tasks().get("evaluate@self") != "Completed" or ["train@dino", "begins"] not in _seen(checkout):
            assert time.monotonic() < deadline, (checkout.parent / "serve.log").read_text()
            time.sleep(0.1)
        # As when the machine loses power: nobody tidies up.
        for process in [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]:
            process.kill()
    assert (checkout / ".dvc" / "tmp" / "rwlock").stat().st_size > 2  # the killed stage still stands in it

    plan(checkout)
    (checkout.parent / "serve.log").unlink()
    with served(checkout, api, PREFECT_API_AUTH_STRING=PASSWORD):
        again = Run(client, checkout)
        assert again.wait().state_name == "Completed", (checkout.parent / "serve.log").read_text()
    done = {"captions", "generate", "train@self", "evaluate@self"}
    assert again.tasks() == {**dict.fromkeys(STAGES, "Completed"), **dict.fromkeys(done, "Skipped")}
    assert [event[0] for event in events(checkout) if event[1] == "ends"].count("generate") == 1


def _seen(checkout: Path) -> list[list[str]]:
    return [event[:2] for event in events(checkout)]
