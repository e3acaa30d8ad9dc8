"""Which version of a registered model is the candidate, and which the champion.

``candidate`` is the newest version. ``champion`` is the best on the gate's metric, and moves only between versions that
were evaluated on the same manifest: figures from different test sets do not compare.
"""

from __future__ import annotations

import logging
from typing import Literal

from mlflow import MlflowClient

CANDIDATE, CHAMPION = "candidate", "champion"
_logger = logging.getLogger("m2m.tracking")


def set_aliases(
    client: MlflowClient, name: str, version: str, *, metric: str, better: Literal["higher", "lower"]
) -> None:
    """Points the aliases to a new version where it deserves them; calling it again changes nothing.

    Between the look at the champion and the change no other version may do the same: the caller holds a lock.
    """
    # Numbers from a database, texts from a server.
    aliases = {alias: str(number) for alias, number in client.get_registered_model(name).aliases.items()}
    if int(aliases.get(CANDIDATE, 0)) < int(version):  # what was delivered late is not the newest
        client.set_registered_model_alias(name, CANDIDATE, version)
    champion = aliases.get(CHAMPION)
    if champion is None or _beats(client, name, version, champion, metric, better):
        client.set_registered_model_alias(name, CHAMPION, version)


def _beats(client: MlflowClient, name: str, version: str, champion: str, metric: str, better: str) -> bool:
    ours, theirs = (client.get_model_version(name, number) for number in (version, champion))
    if ours.tags.get("manifest") != theirs.tags.get("manifest"):
        reason = "they were evaluated on different datasets"
    else:
        score, to_beat = (client.get_run(str(one.run_id)).data.metrics.get(metric) for one in (ours, theirs))
        if score is not None and to_beat is not None:
            return bool(score > to_beat if better == "higher" else score < to_beat)
        reason = f"one of them has no {metric}"
    _logger.warning("tracking: version %s stays champion of %s; version %s: %s", champion, name, version, reason)
    return False
