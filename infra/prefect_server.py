"""Prefect's server behind a check of the host that a request names, which Prefect itself does not make.

`uvicorn --factory infra.prefect_server:make_app` stands for `prefect server start`. Prefect's own settings ask for a
key and say which pages may read its answers; without this check a page of elsewhere, whose name is made to lead to this
machine, would be such a page.
"""

from __future__ import annotations

import os

from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp

from m2m.errors import UserError

HOSTS = "M2M_PREFECT_HOSTS"
"""The variable that names the hosts by which it may be asked, comma-separated, without ports."""
KEY = "PREFECT_SERVER_API_AUTH_STRING"


def make_app() -> ASGIApp:
    """The server, its pages and its services, in this process.

    Raises:
        UserError: the environment gives it no key or no hosts: it would run whatever anybody sends it.
    """
    for variable in (KEY, HOSTS):
        if not os.environ.get(variable):
            raise UserError(f"{variable} is not set; Prefect's server is not started without it")
    from prefect.server.api.server import create_app  # takes seconds, which nobody need wait to be refused

    hosts = [host.strip() for host in os.environ[HOSTS].split(",")]
    return TrustedHostMiddleware(create_app(final=True), allowed_hosts=hosts, www_redirect=False)
