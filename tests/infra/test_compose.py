"""The stack for Docker: pinned, closed to other machines, and nothing without its secrets."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.prefect_server import HOSTS, KEY
from infra.servers import PORTS

INFRA = Path(__file__).parents[2] / "infra"
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SECRETS = {
    "M2M_MLFLOW_DB_PASSWORD",
    "M2M_POSTGRES_PASSWORD",
    "M2M_PREFECT_DB_PASSWORD",
    "M2M_PREFECT_KEY",
    "M2M_S3_ACCESS_KEY",
    "M2M_S3_SECRET_KEY",
}
DIGEST = r"@sha256:[0-9a-f]{64}"


def test_the_services_are_those_of_the_local_stack_and_their_database() -> None:
    assert set(SERVICES) == {*PORTS, "flows", "postgres"}


def test_ports_are_bound_to_this_machine_and_changed_as_those_of_the_local_stack() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {
        name: [f"127.0.0.1:${{{variable}:-{usual}}}:{usual}"] for name, (variable, usual) in PORTS.items()
    }
    assert not [name for name, service in SERVICES.items() if "network_mode" in service]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_and_watched(name: str) -> None:
    service = SERVICES[name]
    if "build" in service:
        assert re.fullmatch(r"m2m:\d+\.\d+\.\d+", service["image"])
    else:
        assert re.fullmatch(rf"[\w/]+:\d[\w.-]*{DIGEST}", service["image"])
    assert service["healthcheck"]["test"][0] == "CMD"
    assert {"interval", "timeout", "retries", "start_period"} <= service["healthcheck"].keys()
    for dependency in service.get("depends_on", {}).values():
        assert dependency == {"condition": "service_healthy"}


def test_the_image_is_pinned_and_made_for_the_project() -> None:
    lines = (INFRA / "Dockerfile").read_text().splitlines()
    (base,) = (line for line in lines if line.startswith("FROM"))
    assert re.fullmatch(rf"FROM python:3\.11\.\d+-slim{DIGEST}", base)
    installs = [line for line in lines if "pip install" in line]
    assert all("--constraint constraints.txt" in line for line in installs)
    assert lines[-1].startswith("USER ")


def test_secrets_come_from_the_environment_alone() -> None:
    texts = [str(value) for service in SERVICES.values() for value in service["environment"].values()]
    required = {match for text in texts for match in re.findall(r"\$\{(\w+):\?set it to [^}]+\}", text)}
    assert required == SECRETS
    for service in SERVICES.values():
        for variable, value in service["environment"].items():
            if re.search(r"PASSWORD|SECRET|ACCESS_KEY|AUTH_STRING", variable):
                assert str(value).startswith("${")


def test_prefect_asks_for_a_key_and_both_servers_take_their_own_hosts_and_pages_only() -> None:
    prefect, flows = SERVICES["prefect"]["environment"], SERVICES["flows"]["environment"]
    assert prefect[KEY] == flows["PREFECT_API_AUTH_STRING"] != ""
    assert prefect[HOSTS] == "127.0.0.1,localhost,prefect"  # of people, of the health check, of the flows
    assert prefect["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == ",".join(
        f"http://{host}:${{M2M_PREFECT_PORT:-4200}}" for host in ("127.0.0.1", "localhost")
    )
    assert SERVICES["prefect"]["command"][3:5] == ["--factory", "infra.prefect_server:make_app"]
    copied = {name for line in (INFRA / "Dockerfile").read_text().splitlines() for name in line.split()}
    sent = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    for name in ("infra/__init__.py", "infra/prefect_server.py"):
        assert name in copied
        assert f"!{name}" in sent
    assert "--allowed-hosts=mlflow:5000,localhost:*,127.0.0.1:*" in SERVICES["mlflow"]["command"]


def test_telemetry_is_off() -> None:
    for name in (*PORTS, "flows"):
        if name != "s3":
            assert SERVICES[name]["environment"]["DO_NOT_TRACK"] == "true"
            assert SERVICES[name]["environment"]["MLFLOW_DISABLE_TELEMETRY"] == "true"
            assert SERVICES[name]["environment"]["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert "-master.telemetry=false" in SERVICES["s3"]["command"]


def test_docker_understands_it_with_secrets_and_refuses_it_without() -> None:
    assert config(dict.fromkeys(SECRETS, "word")).returncode == 0
    for missing in SECRETS:
        refused = config(dict.fromkeys(SECRETS - {missing}, "word"))
        assert refused.returncode != 0
        assert missing in refused.stderr


def config(variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`docker compose config`, which needs a client and no server."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("M2M_")}
    command = ["docker", "compose", "--file", str(INFRA / "compose.yaml"), "config", "--quiet"]
    try:
        subprocess.run(["docker", "compose", "version"], capture_output=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("there is no docker client with compose")
    return subprocess.run(command, env={**others, **variables}, capture_output=True, text=True, check=False)
