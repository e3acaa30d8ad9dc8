"""The local stack with real servers, on free ports, in a home of its own."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import psutil
import pytest
from filelock import FileLock
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from infra import state
from infra.local import NAMES
from infra.state import read_ports
from m2m.errors import UserError

pytest.importorskip("prefect")
ROOT = Path(__file__).parents[2]
PORT_VARIABLES = ("M2M_PREFECT_PORT", "M2M_MLFLOW_PORT", "M2M_S3_PORT")
FLOWS = """
from prefect import flow, serve

@flow
def nothing():
    pass

if __name__ == "__main__":
    serve(nothing.to_deployment("by-hand"))
"""


@dataclass
class Home:
    """A folder that stands for the main checkout, and the command line run in it."""

    folder: Path
    ports: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "flows").mkdir(parents=True)
        (self.folder / "flows" / "__init__.py").write_text("")  # else the checkout's own package would be found first
        (self.folder / "flows" / "deploy.py").write_text(FLOWS)
        sockets = [socket.socket() for _ in PORT_VARIABLES]
        for variable, probe in zip(PORT_VARIABLES, sockets, strict=True):
            probe.bind(("127.0.0.1", 0))
            self.ports[variable] = probe.getsockname()[1]
        for probe in sockets:
            probe.close()

    def run(self, verb: str) -> subprocess.CompletedProcess[str]:
        foreign = {
            "AWS_PROFILE": "elsewhere",
            "PREFECT_API_KEY": "elsewhere",
            "PREFECT_SERVER_API_AUTH_STRING": "elsewhere",
            "MLFLOW_TRACKING_URI": "http://elsewhere",
        }
        ports = {variable: str(port) for variable, port in self.ports.items()}
        return subprocess.run(
            [sys.executable, "-m", "infra.local", verb],
            cwd=self.folder,
            env={**os.environ, **foreign, **ports, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=170,
            check=False,
        )

    def address(self, variable: str) -> str:
        return f"http://127.0.0.1:{self.ports[variable]}"

    def prefect_key(self) -> str:
        return (self.folder / "data" / "prefect.key").read_text().strip()

    def ask_prefect(self, path: str, body: Any = None) -> Any:
        """What the API answers who has the key."""
        key = base64.b64encode(self.prefect_key().encode()).decode()
        return ask(f"{self.address('M2M_PREFECT_PORT')}/api/{path}", body, {"Authorization": f"Basic {key}"})

    def leaders(self) -> dict[str, int]:
        records = json.loads((self.folder / "work" / "stack" / "servers.json").read_text())
        return {name: record["pid"] for name, record in records.items()}

    def processes(self) -> dict[int, Any]:
        return {pid: process for name in NAMES for pid, process in state.find(name, self.folder).items()}

    def shell(self) -> dict[str, str]:
        """The variables of a shell that read the file for shells and had none before."""
        answer = subprocess.run(
            ["sh", "-c", ". work/stack/env && env -0"],
            cwd=self.folder,
            env={"PATH": os.defpath, "AWS_PROFILE": "elsewhere"},
            capture_output=True,
            text=True,
            check=True,
        )
        return dict(line.split("=", 1) for line in answer.stdout.split("\0") if line)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """With the stack up; the servers are ended with the module."""
    home = Home(tmp_path_factory.mktemp("stack") / "a home")
    try:
        up = home.run("up")
        assert (up.returncode, up.stderr) == (0, "")
        for key in (home.prefect_key(), *(home.folder / "data" / "s3.keys").read_text().split()):
            assert key not in up.stdout
        assert "Sign in to Prefect's pages with the line in data/prefect.key\n" in up.stdout
        for variable in PORT_VARIABLES:
            assert home.address(variable) in up.stdout
        assert ". work/stack/env" in up.stdout
        yield home
    finally:
        home.run("down")
        assert not home.processes()


@pytest.fixture
def foreigner() -> Iterator[psutil.Process]:
    """A process that is none of ours."""
    process = subprocess.Popen(["sleep", "300"])
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def ask(address: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **(headers or {})}
    with urlopen(Request(address, data=data, headers=headers), timeout=20) as answer:
        return json.loads(answer.read())


@pytest.mark.slow
def test_prefect_answers_and_its_pages_know_its_address(home: Home) -> None:
    api = f"{home.address('M2M_PREFECT_PORT')}/api"
    settings = ask(f"{home.address('M2M_PREFECT_PORT')}/ui-settings")
    assert (settings["api_url"], settings["auth"]) == (api, "BASIC")  # so the pages ask who opens them to sign in
    assert [deployment["name"] for deployment in home.ask_prefect("deployments/filter", {})] == ["by-hand"]
    assert (home.folder / "prefect.db").exists()


FOREIGN: list[dict[str, str]] = [
    {"Origin": "http://evil.example"},
    {"Host": "evil.example:{port}"},
    {"Host": "evil.example:{port}", "Origin": "http://evil.example:{port}"},  # a name that was made to lead here
    {"Host": "10.evil.example", "Origin": "http://10.evil.example"},  # it begins as a private address does
    {"Host": "127.0.0.1.evil.example:{port}", "Origin": "null"},
]
"""What a browser sends for a page of elsewhere."""


def sent(
    address: str, method: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    """The status of an answer, 0 if it is none of HTTP, and which origin's pages may read it."""
    port = address.split(":")[2].partition("/")[0]
    headers = {name: value.format(port=port) for name, value in (headers or {}).items()}
    request = Request(address, data=body, method=method, headers={"Content-Type": "application/json", **headers})
    try:
        with urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers.get("access-control-allow-origin", "")
    except HTTPError as error:
        with error:
            return error.code, error.headers.get("access-control-allow-origin", "")
    except (URLError, OSError):
        return 0, ""


def preflight(address: str, origin: str) -> str:
    """Which origin's pages may send a request that a form could not."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    return sent(address, "OPTIONS", headers={"Origin": origin, **asked})[1]


@pytest.mark.slow
def test_who_has_no_key_can_do_nothing_at_prefect(home: Home) -> None:
    api = f"{home.address('M2M_PREFECT_PORT')}/api"
    before = home.ask_prefect("deployments/filter", {})[0]
    script = {"prefect.deployments.steps.run_shell_script": {"script": f"touch {home.folder}/done"}}
    for headers in ({}, *FOREIGN, {"Authorization": "Basic " + base64.b64encode(b"m2m:guessed").decode()}):
        for method, path, body in (
            ("PATCH", f"deployments/{before['id']}", {"pull_steps": [script]}),
            ("POST", f"deployments/{before['id']}/create_flow_run", {}),
            ("POST", "deployments/filter", {}),
            ("POST", "variables/", {"name": "mine", "value": "mine"}),
            ("GET", "admin/settings", None),
        ):
            data = None if body is None else json.dumps(body).encode()
            status, readable = sent(f"{api}/{path}", method, data, headers)
            assert (status in (400, 401), readable) == (True, ""), (method, path, headers)
    # Not even with the key, which a page of elsewhere might have been told.
    key = {"Authorization": "Basic " + base64.b64encode(home.prefect_key().encode()).decode()}
    for headers in FOREIGN[1:]:
        assert sent(f"{api}/deployments/filter", "POST", b"{}", {**headers, **key})[0] == 400
    assert home.ask_prefect(f"deployments/{before['id']}")["pull_steps"] == before["pull_steps"]
    assert home.ask_prefect("flow_runs/count", {}) == 0
    assert preflight(f"{api}/deployments/filter", "http://evil.example") == ""
    own = home.address("M2M_PREFECT_PORT")
    assert preflight(f"{api}/deployments/filter", own) == own
    assert preflight(f"{api}/deployments/filter", own.replace("127.0.0.1", "localhost")) != ""


@pytest.mark.parametrize("first", [{"type": "auth", "token": "m2m:guessed"}, {"type": "auth"}, {"type": "event"}])
@pytest.mark.slow
def test_who_has_no_key_gets_no_socket_of_prefect(home: Home, first: dict[str, str]) -> None:
    for path in ("events/in", "events/out", "logs/out", "task_runs/subscriptions/scheduled"):
        with pytest.raises(ConnectionClosed):  # noqa: PT012  (when it is closed is Prefect's own)
            address = f"ws://127.0.0.1:{home.ports['M2M_PREFECT_PORT']}/api/{path}"
            with connect(address, subprotocols=["prefect"], proxy=None) as opened:  # type: ignore[list-item]
                opened.send(json.dumps(first))
                opened.recv(timeout=20)
    port = home.ports["M2M_PREFECT_PORT"]
    address = f"ws://evil.example:{port}/api/events/in"
    with (
        pytest.raises(InvalidStatus, match="400"),
        connect(address, sock=socket.create_connection(("127.0.0.1", port)), proxy=None),
    ):
        pass


@pytest.mark.slow
def test_a_page_of_elsewhere_can_do_nothing_at_mlflow(home: Home) -> None:
    server = home.address("M2M_MLFLOW_PORT")
    for path in ("api/2.0/mlflow/experiments/create", "ajax-api/2.0/mlflow/experiments/create"):
        for headers in FOREIGN:
            assert sent(f"{server}/{path}", "POST", b'{"name": "mine"}', headers) == (403, ""), headers
            # As a form sends it, which asks nobody first.
            plain = {**headers, "Content-Type": "text/plain"}
            assert sent(f"{server}/{path}", "POST", b'{"name": "mine"}', plain) == (403, ""), headers
        assert preflight(f"{server}/{path}", "http://evil.example") == ""
    for path in ("api/2.0/mlflow/experiments/get?experiment_id=0", "graphql", "v1/traces"):
        assert all(sent(f"{server}/{path}", "GET", headers=headers)[1] == "" for headers in FOREIGN)
    found = ask(f"{server}/api/2.0/mlflow/experiments/search", {"max_results": 10})["experiments"]
    assert [experiment["name"] for experiment in found] == ["Default"]


@pytest.mark.slow
def test_who_has_no_key_can_do_nothing_at_s3(home: Home) -> None:
    server = home.address("M2M_S3_PORT")
    form = b'--b\r\nContent-Disposition: form-data; name="key"\r\n\r\nmine\r\n--b\r\nContent-Disposition: form-data; '
    form += b'name="file"; filename="mine"\r\n\r\nmine\r\n--b--\r\n'
    for headers in ({}, *FOREIGN):
        for method, path, body in (
            ("GET", "", None),
            ("GET", "m2m", None),
            ("PUT", "m2m/mine", b"mine"),
            ("PUT", "mine", None),
            ("DELETE", "m2m", None),
            ("POST", "m2m?delete", b"<Delete><Object><Key>mine</Key></Object></Delete>"),
        ):
            status, readable = sent(f"{server}/{path}", method, body, headers)
            assert (status in (400, 403), readable) == (True, ""), (method, path, headers)
        sent_form = {**headers, "Content-Type": "multipart/form-data; boundary=b"}
        assert sent(f"{server}/m2m", "POST", form, sent_form)[0] in (400, 403)
        assert preflight(f"{server}/m2m/mine", "http://evil.example") == ""
    assert not list(home.folder.rglob("mine*"))


@pytest.mark.slow
def test_no_other_port_of_the_stack_serves_a_page_of_elsewhere(home: Home) -> None:
    ports = {
        connection.laddr.port
        for process in home.processes().values()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert ports >= set(home.ports.values())
    for port in ports:
        for headers in FOREIGN[1:]:
            assert sent(f"http://127.0.0.1:{port}/", "GET", headers=headers)[0] in (0, 400, 403)


@pytest.mark.slow
def test_mlflow_keeps_the_runs_where_they_were(home: Home) -> None:
    address = f"{home.address('M2M_MLFLOW_PORT')}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert ask(address)["experiment"]["artifact_location"] == (home.folder / "mlruns" / "0").as_uri()
    assert (home.folder / "mlflow.db").exists()


@pytest.mark.slow
def test_s3_takes_the_generated_keys_and_no_others(home: Home) -> None:
    import boto3
    from botocore.exceptions import ClientError

    shell = home.shell()
    assert shell["M2M_STORE"] == "s3://m2m"
    keys = {"aws_access_key_id": shell["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": shell["AWS_SECRET_ACCESS_KEY"]}
    place = {"endpoint_url": shell["AWS_ENDPOINT_URL"], "region_name": shell["AWS_DEFAULT_REGION"]}
    client = boto3.client("s3", **keys, **place)
    client.put_object(Bucket="m2m", Key="shards/one.tar", Body=b"one")
    assert client.get_object(Bucket="m2m", Key="shards/one.tar")["Body"].read() == b"one"
    # The store without the stack is the same one, also after the last object of a folder has gone.
    assert (home.folder / "data" / "store" / "shards" / "one.tar").read_bytes() == b"one"
    client.delete_object(Bucket="m2m", Key="shards/one.tar")
    client.put_object(Bucket="m2m", Key="shards/two.tar", Body=b"two")
    assert (home.folder / "data" / "store" / "shards" / "two.tar").read_bytes() == b"two"
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        boto3.client("s3", **{**keys, "aws_secret_access_key": "another"}, **place).list_buckets()
    client.close()


@pytest.mark.slow
def test_secrets_are_for_the_owner_only(home: Home) -> None:
    secrets = (home.shell()["AWS_SECRET_ACCESS_KEY"], home.prefect_key())
    for name in ("work/stack/env", "data/s3.keys", "data/prefect.key"):
        assert (home.folder / name).stat().st_mode & 0o777 == 0o600
    for secret in secrets:
        for process in home.processes().values():
            assert secret not in " ".join(process.cmdline())
        for log in (home.folder / "work" / "stack").glob("*.log"):
            assert secret not in log.read_text()


@pytest.mark.slow
def test_flows_and_shell_are_pointed_at_the_stack(home: Home) -> None:
    shell = home.shell()
    flows = psutil.Process(home.leaders()["flows"]).environ()
    assert shell["PREFECT_API_URL"] == f"{home.address('M2M_PREFECT_PORT')}/api"
    assert shell["PREFECT_API_AUTH_STRING"] == home.prefect_key()
    assert shell["MLFLOW_TRACKING_URI"] == home.address("M2M_MLFLOW_PORT")
    assert shell["AWS_ENDPOINT_URL"] == home.address("M2M_S3_PORT")
    pointers = {
        name: value for name, value in shell.items() if name.startswith(("AWS_", "M2M_", "MLFLOW_", "PREFECT_"))
    }
    assert pointers.items() <= flows.items()
    assert not {"AWS_PROFILE", "PREFECT_API_KEY"} & (shell.keys() | flows.keys())


@pytest.mark.slow
def test_telemetry_is_off(home: Home) -> None:
    off = {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    assert off.items() <= home.shell().items()
    for process in home.processes().values():
        assert off.items() <= process.environ().items()
    mlflow = psutil.Process(home.leaders()["mlflow"]).environ()
    assert mlflow["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


@pytest.mark.slow
def test_all_listen_on_this_machine_only(home: Home) -> None:
    listening = {
        connection.laddr
        for process in home.processes().values()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert {address.port for address in listening} >= set(home.ports.values())


@pytest.mark.slow
def test_a_second_start_says_so_and_changes_nothing(home: Home) -> None:
    before = home.leaders()
    again = home.run("up")
    assert again.returncode == 0
    assert "already up" in again.stdout
    assert home.leaders() == before
    status = home.run("status")
    assert status.returncode == 0
    assert len(re.findall(r"^\w+ +up, process \d+", status.stdout, flags=re.MULTILINE)) == 4


@pytest.mark.slow
def test_a_killed_server_is_brought_back_alone(home: Home) -> None:
    before = home.leaders()
    os.kill(before["mlflow"], signal.SIGKILL)
    assert home.run("status").returncode == 1
    again = home.run("up")
    assert (again.returncode, again.stderr) == (0, "")
    after = home.leaders()
    assert after.pop("mlflow") != before.pop("mlflow")
    assert after == before
    assert ask(f"{home.address('M2M_MLFLOW_PORT')}/api/2.0/mlflow/experiments/get?experiment_id=0")


@pytest.mark.slow
def test_the_end_is_that_of_the_stack_alone(home: Home, foreigner: psutil.Process) -> None:
    """A killed server's offspring ends with the rest, a process that got a server's old number does not."""
    records = home.folder / "work" / "stack" / "servers.json"
    changed = json.loads(records.read_text())
    os.kill(changed["mlflow"]["pid"], signal.SIGKILL)
    changed["mlflow"]["pid"] = foreigner.pid
    records.write_text(json.dumps(changed))
    keys = (home.folder / "data" / "s3.keys").read_text(), home.prefect_key()

    ended = home.run("down")
    assert (ended.returncode, ended.stdout) == (0, "Ended: flows, prefect, mlflow, s3.\n")
    assert not home.processes()
    assert foreigner.status() != psutil.STATUS_ZOMBIE
    assert not (home.folder / "work" / "stack" / "env").exists()
    assert ((home.folder / "data" / "s3.keys").read_text(), home.prefect_key()) == keys
    assert home.run("down").stdout == "Nothing of the local stack was running.\n"


def test_ports_that_are_taken_are_named_in_one_line(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with socket.socket() as one, socket.socket() as other:
        for taken, variable in ((one, "M2M_MLFLOW_PORT"), (other, "M2M_S3_PORT")):
            taken.bind(("127.0.0.1", home.ports[variable]))
            taken.listen()
        up = home.run("up")
        assert up.returncode == 2
        assert len(up.stderr.splitlines()) == 1
        assert f"{home.ports['M2M_MLFLOW_PORT']} for mlflow (by {psutil.Process().name()}" in up.stderr
        assert f"{home.ports['M2M_S3_PORT']} for s3" in up.stderr
        assert str(home.ports["M2M_PREFECT_PORT"]) not in up.stderr
    assert not home.processes()


@pytest.mark.slow  # it waits for what never comes
def test_nothing_is_left_running_when_a_server_does_not_come_up(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with closing(sqlite3.connect(home.folder / "mlflow.db")) as database, database:
        database.execute("CREATE TABLE alembic_version AS SELECT 'of a time to come' AS version_num")
    up = home.run("up")
    assert up.returncode == 2
    assert len(up.stderr.splitlines()) == 1
    assert "MLflow did not come up" in up.stderr
    assert str(home.folder / "work" / "stack" / "mlflow.log") in up.stderr
    assert not home.processes()
    assert not (home.folder / "work" / "stack" / "env").exists()


def test_what_is_no_database_is_named(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    (home.folder / "mlflow.db").write_text("no database " * 1000)
    up = home.run("up")
    assert up.returncode == 2
    assert f"{home.folder / 'mlflow.db'}: MLflow's database cannot be used" in up.stderr
    assert len(up.stderr.splitlines()) == 1
    assert not home.processes()


def test_two_at_once_do_not_meet(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    (home.folder / "work" / "stack").mkdir(parents=True)
    with FileLock(home.folder / "work" / "stack" / "lock"):
        up = home.run("up")
    assert (up.returncode, len(up.stderr.splitlines())) == (2, 1)
    assert "another make up or make down is at work" in up.stderr


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("M2M_S3_PORT", "eighty", "expected a port from 1 to 65535"),
        ("M2M_S3_PORT", "70000", "expected a port from 1 to 65535"),
        ("M2M_S3_PORT", "4200", "each server needs a port of its own"),
    ],
)
def test_a_port_that_cannot_be_is_named(variable: str, value: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_ports({variable: value})
    assert read_ports({}) == {"s3": 8333, "mlflow": 5000, "prefect": 4200}
