"""The local stack with real servers, on free ports, in a home of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import pytest
from filelock import FileLock

from infra import processes
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

    def leaders(self) -> dict[str, int]:
        records = json.loads((self.folder / "work" / "stack" / "servers.json").read_text())
        return {name: record["pid"] for name, record in records.items()}

    def processes(self) -> dict[int, Any]:
        return {pid: process for name in NAMES for pid, process in processes.find(name, self.folder).items()}

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
        for key in (home.folder / "data" / "s3.keys").read_text().split():
            assert key not in up.stdout
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


def ask(address: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(address, data=data, headers={"Content-Type": "application/json"}), timeout=20) as answer:
        return json.loads(answer.read())


def test_prefect_answers_and_its_pages_know_its_address(home: Home) -> None:
    api = f"{home.address('M2M_PREFECT_PORT')}/api"
    assert ask(f"{home.address('M2M_PREFECT_PORT')}/ui-settings")["api_url"] == api
    assert [deployment["name"] for deployment in ask(f"{api}/deployments/filter", {})] == ["by-hand"]
    assert (home.folder / "prefect.db").exists()


def test_mlflow_keeps_the_runs_where_they_were(home: Home) -> None:
    address = f"{home.address('M2M_MLFLOW_PORT')}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert ask(address)["experiment"]["artifact_location"] == (home.folder / "mlruns" / "0").as_uri()
    assert (home.folder / "mlflow.db").exists()


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


def test_secrets_are_for_the_owner_only(home: Home) -> None:
    secret = home.shell()["AWS_SECRET_ACCESS_KEY"]
    for file in (home.folder / "work" / "stack" / "env", home.folder / "data" / "s3.keys"):
        assert file.stat().st_mode & 0o777 == 0o600
    for process in home.processes().values():
        assert secret not in " ".join(process.cmdline())
    for log in (home.folder / "work" / "stack").glob("*.log"):
        assert secret not in log.read_text()


def test_flows_and_shell_are_pointed_at_the_stack(home: Home) -> None:
    shell = home.shell()
    flows = psutil.Process(home.leaders()["flows"]).environ()
    assert shell["PREFECT_API_URL"] == f"{home.address('M2M_PREFECT_PORT')}/api"
    assert shell["MLFLOW_TRACKING_URI"] == home.address("M2M_MLFLOW_PORT")
    assert shell["AWS_ENDPOINT_URL"] == home.address("M2M_S3_PORT")
    pointers = {
        name: value for name, value in shell.items() if name.startswith(("AWS_", "M2M_", "MLFLOW_", "PREFECT_"))
    }
    assert pointers.items() <= flows.items()
    assert not {"AWS_PROFILE", "PREFECT_API_KEY"} & (shell.keys() | flows.keys())


def test_telemetry_is_off(home: Home) -> None:
    off = {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    assert off.items() <= home.shell().items()
    for process in home.processes().values():
        assert off.items() <= process.environ().items()
    mlflow = psutil.Process(home.leaders()["mlflow"]).environ()
    assert mlflow["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_all_listen_on_this_machine_only(home: Home) -> None:
    listening = {
        connection.laddr
        for process in home.processes().values()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert {address.port for address in listening} >= set(home.ports.values())


def test_a_second_start_says_so_and_changes_nothing(home: Home) -> None:
    before = home.leaders()
    again = home.run("up")
    assert again.returncode == 0
    assert "already up" in again.stdout
    assert home.leaders() == before
    status = home.run("status")
    assert status.returncode == 0
    assert len(re.findall(r"^\w+ +up, process \d+", status.stdout, flags=re.MULTILINE)) == 4


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


def test_the_end_is_that_of_the_stack_alone(home: Home, foreigner: psutil.Process) -> None:
    """A killed server's offspring ends with the rest, a process that got a server's old number does not."""
    records = home.folder / "work" / "stack" / "servers.json"
    changed = json.loads(records.read_text())
    os.kill(changed["mlflow"]["pid"], signal.SIGKILL)
    changed["mlflow"]["pid"] = foreigner.pid
    records.write_text(json.dumps(changed))
    keys = (home.folder / "data" / "s3.keys").read_text()

    ended = home.run("down")
    assert (ended.returncode, ended.stdout) == (0, "Ended: flows, prefect, mlflow, s3.\n")
    assert not home.processes()
    assert foreigner.status() != psutil.STATUS_ZOMBIE
    assert not (home.folder / "work" / "stack" / "env").exists()
    assert (home.folder / "data" / "s3.keys").read_text() == keys
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


def test_nothing_is_left_running_when_a_server_does_not_come_up(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    (home.folder / "mlflow.db").write_text("no database " * 1000)
    up = home.run("up")
    assert up.returncode == 2
    assert len(up.stderr.splitlines()) == 1
    assert "MLflow did not come up" in up.stderr
    assert str(home.folder / "work" / "stack" / "mlflow.log") in up.stderr
    assert not home.processes()
    assert not (home.folder / "work" / "stack" / "env").exists()


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
