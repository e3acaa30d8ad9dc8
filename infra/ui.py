"""``make ui``: MLflow's pages of what is recorded, without a server that has to be started before.

`python -m infra.ui [PORT]` shows the database where this checkout's runs are recorded, on 127.0.0.1.
"""

from __future__ import annotations

import os
import sys

from infra.servers import HOST, MLFLOW_SETTINGS, PORTS
from m2m.errors import UserError
from m2m.settings import TELEMETRY_OFF, Settings, main_checkout, sqlite_file, without_password
from m2m.tracking import ALL_RUNS, bring_artifacts_along, open_history


def environment(settings: Settings) -> dict[str, str]:
    """What tells MLflow's server where things are: not as arguments, which everybody on the machine can read.

    Raises:
        UserError: runs are recorded nowhere, or on a server, which has pages of its own.
    """
    uri = settings.tracking_uri
    if uri == "none":
        raise UserError("MLFLOW_TRACKING_URI is none: nothing is recorded; unset it, or name a database")
    if uri.startswith("http"):
        raise UserError(f"runs are recorded on a server, which has pages of its own: open {without_password(uri)}")
    database = sqlite_file(uri)
    home = database.parent if database else main_checkout()
    return {
        **TELEMETRY_OFF,
        **MLFLOW_SETTINGS,
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": (home / "mlruns").as_uri(),
    }


def main(arguments: list[str]) -> None:
    """Becomes the server; exits with 2 where a person has to do something."""
    port = arguments[0] if arguments else str(PORTS["mlflow"][1])
    try:
        settings = Settings.from_environment()
        variables = environment(settings)
        pages = {"all runs": ALL_RUNS}
        database = sqlite_file(settings.tracking_uri)
        if database:
            bring_artifacts_along(database)
        if database is None or database.exists():
            pages |= open_history(settings.tracking_uri).comparisons()
    except UserError as error:
        print(f"make ui: {error}", file=sys.stderr)
        sys.exit(2)
    for what, page in pages.items():
        print(f"{what + ':':24} http://{HOST}:{port}/{page}")
    print("MLflow starts there; Ctrl-C ends it", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", port, "--workers", "1"]
    os.execve(sys.executable, command, {**os.environ, **variables})


if __name__ == "__main__":
    main(sys.argv[1:])
