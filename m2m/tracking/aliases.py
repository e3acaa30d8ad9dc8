"""Which version of a registered model is the candidate, and which the champion.

``candidate`` is the newest version. ``champion`` is the best on the gate's metric of those that have what the gate
requires of all, and moves only between versions that were evaluated on the same manifest: figures from different sets
do not compare.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

CANDIDATE, CHAMPION = "candidate", "champion"
NOTHING: Mapping[str, float] = MappingProxyType({})
_logger = logging.getLogger("m2m.tracking")


def set_aliases(
    client: MlflowClient,
    name: str,
    version: str,
    *,
    metric: str,
    better: Literal["higher", "lower"],
    require: Mapping[str, float] = NOTHING,
) -> None:
    """Points the aliases to a new version where it deserves them; calling it again changes nothing.

    Between the look at the champion and the change no other version may do the same: the caller holds a lock.
    """
    # Numbers from a database, texts from a server.
    aliases = {alias: str(number) for alias, number in client.get_registered_model(name).aliases.items()}
    if int(aliases.get(CANDIDATE, 0)) < int(version):  # what was delivered late is not the newest
        client.set_registered_model_alias(name, CANDIDATE, version)
    if lacks := _lacks(client, name, version, require):
        _logger.warning("tracking: version %s of %s cannot be champion: %s", version, name, lacks)
        return
    champion = aliases.get(CHAMPION)
    if champion is None or _beats(client, name, version, champion, metric, better):
        client.set_registered_model_alias(name, CHAMPION, version)


def _lacks(client: MlflowClient, name: str, version: str, require: Mapping[str, float]) -> str:
    """The first requirement that a version does not meet, in words; empty if it meets all."""
    figures = client.get_run(str(client.get_model_version(name, version).run_id)).data.metrics if require else {}
    for metric, least in require.items():
        value = figures.get(metric)
        if value is None:
            return f"it has no {metric}"
        if not value >= least:
            return f"{metric} is {value:.3g}, at least {least:g} is required"
    return ""


def _figures(client: MlflowClient, version: ModelVersion) -> Mapping[str, float] | None:
    """The metrics of the run that registered a version; None if the run is gone, as after ``mlflow gc``."""
    try:
        figures: Mapping[str, float] = client.get_run(str(version.run_id)).data.metrics
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return figures


def _beats(client: MlflowClient, name: str, version: str, champion: str, metric: str, better: str) -> bool:
    ours, theirs = (client.get_model_version(name, number) for number in (version, champion))
    if _figures(client, theirs) is None:
        _logger.warning(
            "tracking: version %s replaces version %s as champion of %s: the run of that one was removed from MLflow",
            *(version, champion, name),
        )
        return True
    if ours.tags.get("manifest") != theirs.tags.get("manifest"):
        reason = "they were evaluated on different datasets"
    else:
        score, to_beat = ((_figures(client, one) or {}).get(metric) for one in (ours, theirs))
        if score is not None and to_beat is not None:
            return bool(score > to_beat if better == "higher" else score < to_beat)
        reason = f"one of them has no {metric}"
    _logger.warning("tracking: version %s stays champion of %s; version %s: %s", champion, name, version, reason)
    return False
