"""Prefect's server is not started open; what a started one refuses is asked of the local stack."""

from __future__ import annotations

import pytest

from infra.prefect_server import HOSTS, KEY, make_app
from m2m.errors import UserError


@pytest.mark.parametrize(("given", "missing"), [(HOSTS, KEY), (KEY, HOSTS)])
def test_without_a_key_or_hosts_it_is_not_started(monkeypatch: pytest.MonkeyPatch, given: str, missing: str) -> None:
    monkeypatch.setenv(given, "m2m:word")
    for nothing in (None, ""):
        monkeypatch.delenv(missing, raising=False)
        if nothing is not None:
            monkeypatch.setenv(missing, nothing)
        with pytest.raises(UserError, match=f"^{missing} is not set"):
            make_app()
