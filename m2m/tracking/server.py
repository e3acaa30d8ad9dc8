"""MLflow's records, asked of a server over its REST API: its own client takes seconds to import."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlencode, urlsplit, urlunsplit
from urllib.request import Request, urlopen

from m2m.errors import OutsideError, UserError
from m2m.settings import without_password, without_secrets
from m2m.tracking.sources import Found

SECONDS = 10.0
"""For a server to answer."""
MOST = 1000
"""Runs or experiments that one search gives."""


class Server:
    """Implements `m2m.tracking.sources.Source`."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        self._uri, self._name = uri, without_password(uri)
        self._root = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
        self._headers = {"Content-Type": "application/json", **_authorization(parts.username, parts.password)}

    def run(self, run_id: str) -> Found | None:
        answer = self._ask("runs/get", run_id=run_id)
        return self._found(answer["run"], self._experiments()) if answer else None

    def tagged(self, tag: str, value: str) -> list[Found]:
        experiments = self._experiments()
        wanted = {
            "experiment_ids": list(experiments),
            "filter": f"tags.`{tag}` = '{value}'",
            "order_by": ["attributes.start_time ASC"],
            "max_results": MOST,
            "run_view_type": "ALL",
        }
        answer = self._ask("runs/search", wanted) or {}
        return [self._found(run, experiments) for run in answer.get("runs", [])]

    def versions(self, run_id: str) -> list[tuple[str, str]]:
        answer = self._ask("model-versions/search", filter=f"run_id = '{run_id}'") or {}
        return [(one["name"], one["version"]) for one in answer.get("model_versions", [])]

    def registered(self, name: str, version: str) -> tuple[str, Mapping[str, str]] | None:
        answer = self._ask("model-versions/get", name=name, version=version)
        if answer is None:
            return None
        return answer["model_version"].get("run_id", ""), _pairs(answer["model_version"].get("tags", []))

    def aliases(self) -> dict[tuple[str, str], str]:
        models = (self._ask("registered-models/search") or {}).get("registered_models", [])
        return {(one["name"], each["alias"]): each["version"] for one in models for each in one.get("aliases", [])}

    def _experiments(self) -> dict[str, str]:
        answer = self._ask("experiments/search", {"max_results": MOST, "view_type": "ALL"}) or {}
        return {one["experiment_id"]: one["name"] for one in answer.get("experiments", [])}

    def _found(self, run: Mapping[str, Any], experiments: Mapping[str, str]) -> Found:
        info, data = run["info"], run["data"]
        used = run.get("inputs", {}).get("dataset_inputs", [])
        return Found(
            id=info["run_id"],
            name=info.get("run_name", ""),
            experiment_id=info["experiment_id"],
            experiment=experiments.get(info["experiment_id"], ""),
            status=info["status"],
            started=int(info["start_time"]),
            deleted=info.get("lifecycle_stage", "active") != "active",
            **{kind: _pairs(data.get(kind, [])) for kind in ("tags", "params", "metrics")},
            datasets=[one["dataset"] for one in used],
        )

    def _ask(self, what: str, body: Mapping[str, Any] | None = None, **query: str) -> dict[str, Any] | None:
        """The answer; None if what is asked for does not exist."""
        address = f"{self._root}/api/2.0/mlflow/{what}" + (f"?{urlencode(query)}" if query else "")
        content = None if body is None else json.dumps(body).encode()
        try:
            with urlopen(Request(address, content, self._headers), timeout=SECONDS) as answer:
                return dict(json.load(answer))
        except HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")
            if "RESOURCE_DOES_NOT_EXIST" in said:
                return None
            kind = OutsideError if error.code == 429 or error.code >= 500 else UserError
            raise kind(f"tracking at {self._name}: {error.code} {error.reason}") from error
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            said = without_secrets(str(getattr(reason, "strerror", None) or reason), self._uri)
            raise OutsideError(f"tracking at {self._name}: {said}") from error


def _authorization(user: str | None, password: str | None) -> dict[str, str]:
    """From the address, else from the variables that MLflow's own client takes it from."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user = unquote(user) if user else os.environ.get("MLFLOW_TRACKING_USERNAME")
    password = unquote(password) if password else os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"} if user else {}


def _pairs(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {item["key"]: item["value"] for item in items}
