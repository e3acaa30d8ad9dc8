"""The servers of the local stack: how each is started, where it keeps what, and when it is healthy."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from httpx2 import BasicAuth, HTTPError, request

from m2m.errors import UserError
from m2m.settings import TELEMETRY_OFF, sqlite_uri
from m2m.tracking import ALL_RUNS

HOST = "127.0.0.1"
HOSTS = (HOST, "localhost")
"""By these names a server may be asked, at any port (of a tunnel); a page of elsewhere can make its own lead here."""
MLFLOW_HOSTS = ",".join(f"{host}:*" for host in HOSTS)
"""Its own list lets in names that only begin like private addresses do, such as 10.example.org."""
BUCKET = "m2m"
PORTS = {"s3": ("M2M_S3_PORT", 8333), "mlflow": ("M2M_MLFLOW_PORT", 5000), "prefect": ("M2M_PREFECT_PORT", 4200)}
"""Of each server that listens: the variable that names its port, and the usual one."""
MLFLOW_SETTINGS = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SERVER_ALLOWED_HOSTS": MLFLOW_HOSTS,
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
"""Of a server of MLflow's pages, wherever it is started."""
FOREIGN = ("AWS_", "MLFLOW_", "PREFECT_", "RCLONE_")
"""What a person's shell may hold for other servers of these kinds; nothing of it reaches the stack."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One stack belongs to one main checkout."""

    home: Path
    """The main checkout."""
    ports: Mapping[str, int]
    """Of the servers that listen."""
    keys: tuple[str, str]
    """Access key and secret key of the S3 server."""
    prefect_key: str
    """``user:password`` of the Prefect server."""

    @property
    def state(self) -> Path:
        """Logs, records and temporary files: made again by the next start."""
        return self.home / "work" / "stack"

    @property
    def pages(self) -> Path:
        """Where Prefect's server copies its pages."""
        return self.state / "pages"

    def log(self, name: str) -> Path:
        """What a server printed since its last start."""
        return self.state / f"{name}.log"

    def address(self, name: str) -> str:
        return f"http://{HOST}:{self.ports[name]}"


@dataclass(frozen=True, kw_only=True)
class Server:
    name: str
    title: str
    command: list[str]
    at: Path
    """Working folder."""
    environment: dict[str, str]
    address: str
    healthy: Callable[[float], bool]
    """Whether it answers as it should, given when its process started (seconds since 1970)."""


def servers(stack: Stack) -> list[Server]:
    """All of them; the last, the flows, needs the others."""
    return [_s3(stack), _mlflow(stack), _prefect(stack), _flows(stack)]


def _s3(stack: Stack) -> Server:
    beside_python = Path(sys.executable).with_name("rclone")
    rclone = str(beside_python) if beside_python.exists() else shutil.which("rclone")
    if rclone is None:
        raise UserError("rclone is not installed; make setup installs it")
    # The bucket is a link to a folder (`state.make_bucket`), to which runs without the stack write past the
    # server: so links are followed, and its notes on what is in a folder are forgotten at once.
    options = ("--addr", f"{HOST}:{stack.ports['s3']}", "--copy-links", "--dir-cache-time", "1s", "--config", "")
    return Server(
        name="s3",
        title="S3",
        command=[rclone, "serve", "s3", str(stack.home / "data" / "s3"), *options],
        at=stack.state,
        # Not as an argument: everybody on the machine can read those.
        environment={**clean_environment(), "RCLONE_AUTH_KEY": '"{},{}"'.format(*stack.keys)},
        address=stack.address("s3"),
        healthy=lambda _: _ask(stack.address("s3"))[0] in (400, 403),  # up, and it refuses who brings no key
    )


def _mlflow(stack: Stack) -> Server:
    places = ("--backend-store-uri", sqlite_uri(stack.home / "mlflow.db"))
    artifacts = ("--default-artifact-root", (stack.home / "mlruns").as_uri())
    network = ("--host", HOST, "--port", str(stack.ports["mlflow"]), "--workers", "1")
    return Server(
        name="mlflow",
        title="MLflow",
        command=[sys.executable, "-m", "mlflow", "server", *network, *places, *artifacts],
        at=stack.state,
        environment={**clean_environment(), **MLFLOW_SETTINGS},
        address=f"{stack.address('mlflow')}/{ALL_RUNS}",
        healthy=lambda _: _ask(f"{stack.address('mlflow')}/health")[0] == 200,
    )


def _prefect(stack: Stack) -> Server:
    address = stack.address("prefect")
    settings = {
        "M2M_PREFECT_HOSTS": ",".join(HOSTS),
        "PREFECT_HOME": str(stack.state / "prefect"),
        # In the environment, as its key for clients: everybody on the machine can read arguments.
        "PREFECT_SERVER_API_AUTH_STRING": stack.prefect_key,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{host}:{stack.ports['prefect']}" for host in HOSTS),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{quote(str(stack.home))}/prefect.db",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_UI_API_URL": f"{address}/api",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(stack.pages),
        "PREFECT_SERVER_UI_V2_ENABLED": "false",
    }
    network = ("--host", HOST, "--port", str(stack.ports["prefect"]), "--log-level", "warning")
    app = ("--factory", "infra.prefect_server:make_app", "--app-dir", str(Path(__file__).parents[1]))

    def closed(_: float) -> bool:
        """Up, and it refuses who brings no key: one that was started before there was a key does not."""
        return _ask(f"{address}/api/ready")[0] == 200 and _ask(f"{address}/api/flows/count", {})[0] == 401

    return Server(
        name="prefect",
        title="Prefect",
        command=[sys.executable, "-m", "uvicorn", *app, *network],
        at=stack.state,
        environment={**clean_environment(), **settings},
        address=address,
        healthy=closed,
    )


def _flows(stack: Stack) -> Server:
    api = f"{stack.address('prefect')}/api"

    def served(since: float) -> bool:
        status, answer = _ask(f"{api}/deployments/filter", {}, key=stack.prefect_key)
        # The database remembers the deployments of earlier starts; only this process asks for their work now.
        polled = [deployment["last_polled"] for deployment in json.loads(answer)] if status == 200 else []
        # As Prefect writes it, with its zone.
        return any(moment and datetime.fromisoformat(moment).timestamp() >= since for moment in polled)

    return Server(
        name="flows",
        title="Flows",
        command=[sys.executable, "-m", "flows.deploy", "serve"],
        at=stack.home,
        environment={**clean_environment(), **client_environment(stack)},
        address=f"{stack.address('prefect')}/deployments",
        healthy=served,
    )


def client_environment(stack: Stack) -> dict[str, str]:
    """What points the pipeline, or a person's shell, at the stack. It holds the keys of S3 and of Prefect."""
    access, secret = stack.keys
    return {
        "AWS_ACCESS_KEY_ID": access,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": stack.address("s3"),
        "AWS_SECRET_ACCESS_KEY": secret,
        "M2M_STORE": f"s3://{BUCKET}",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_TRACKING_URI": stack.address("mlflow"),
        "PREFECT_API_AUTH_STRING": stack.prefect_key,
        "PREFECT_API_URL": f"{stack.address('prefect')}/api",
        "PREFECT_HOME": str(stack.state / "prefect"),
        **TELEMETRY_OFF,
    }


def clean_environment() -> dict[str, str]:
    """The shell's, without settings for other servers, with telemetry off and this Python's programs first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    direct = ",".join(filter(None, (kept.get("NO_PROXY", kept.get("no_proxy")), HOST)))
    return {**kept, **TELEMETRY_OFF, "PATH": path, "NO_PROXY": direct, "no_proxy": direct, "PYTHONUNBUFFERED": "1"}


def _ask(address: str, body: Any = None, *, key: str = "") -> tuple[int, bytes]:
    """Status and content of an answer over HTTP; status 0 where nothing answers. A `body` is sent as JSON."""
    method, auth = "GET" if body is None else "POST", BasicAuth(*key.split(":", 1)) if key else None
    try:
        # No proxy that the environment may name stands between this machine and itself.
        answer = request(method, address, json=body, auth=auth, timeout=5, trust_env=False, follow_redirects=True)
    except HTTPError:
        return 0, b""
    return answer.status_code, answer.content
