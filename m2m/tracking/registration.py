"""Registers a pipeline folder, and says which version of a model is the candidate, and which the champion.

What is registered is safetensors and JSON as they are, with the code that draws; nothing is pickled.

``candidate`` is the newest version. ``champion`` is the best on the gate's metric of those that have what the gate
requires of all, and moves only between versions that were evaluated on the same manifest: figures from different sets
do not compare.
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import mlflow.pyfunc
import pandas as pd
from huggingface_hub import metadata_load
from jinja2 import Environment, PackageLoader, StrictUndefined
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS
from PIL import Image

from m2m.tracking.connection import unless

CANDIDATE, CHAMPION = "candidate", "champion"
_log = logging.getLogger("m2m.tracking")

ABOUT = """Draws the next images of a set, after any number of given ones: what they share is kept, the rest varies.

`mlflow.pyfunc.load_model("models:/NAME/VERSION").predict(frame, params={"num_images": 4})` draws from base64 PNGs
in the column `image`. `candidate` is the newest version, `champion` the best by the gate of `params.yaml`.
"""
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("string", "image")]),
    outputs=Schema([ColSpec("string", "image")]),
    params=ParamSchema(
        [
            ParamSpec("num_images", "long", 1),
            ParamSpec("num_inference_steps", "long", 25),
            ParamSpec("guidance_scale", "double", 1.25),
            ParamSpec("seed", "long", 0),
        ]
    ),
)
"""Base64 PNGs in, one a row, in order; as many drawn ones out, likewise."""

REQUIREMENTS = ("torch", "diffusers", "transformers", "safetensors", "numpy", "pillow", "pandas", "pydantic")
"""What the code that draws imports."""


def _example_png() -> str:
    """A grey picture as the model takes them."""
    png = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(png, "PNG")
    return base64.b64encode(png.getvalue()).decode()


def register(
    client: MlflowClient,
    *,
    run_id: str,
    experiment_id: str,
    name: str,
    folder: Path,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    time: int,
) -> str:
    """Makes `folder` the next version of the model `name`, unless this run has one; returns the version.

    ``mlflow.pyfunc.load_model("models:/NAME/VERSION").predict(frame, params={"num_images": 4})`` draws with it.
    """
    found = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if found:
        version = str(found[0].version)
        if not found[0].description:  # the attempt that made it came no further
            client.update_model_version(name, version, _card(client, run_id, name, version, folder, metrics))
        return version
    outputs = client.get_run(run_id).outputs
    if outputs and outputs.model_outputs:  # an earlier attempt came that far
        model_id = outputs.model_outputs[0].model_id
    else:
        model_id = _log_model(client, run_id, experiment_id, name, folder, tags)
    points = [Metric(key, value, time, 0, model_id=model_id, run_id=run_id) for key, value in metrics.items()]
    client.log_batch(run_id, metrics=points)
    unless("RESOURCE_ALREADY_EXISTS", lambda: client.create_registered_model(name, description=ABOUT))
    # MLflow resolves the models:/ address with its global setting, whatever the client's own is.
    mlflow.set_tracking_uri(client.tracking_uri)
    made = client.create_model_version(name, f"models:/{model_id}", run_id, dict(tags), model_id=model_id)
    here = json.dumps([{"name": name, "version": made.version}])
    client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: here})
    version = str(made.version)
    client.update_model_version(name, version, _card(client, run_id, name, version, folder, metrics))
    return version


def _card(
    client: MlflowClient, run_id: str, name: str, version: str, folder: Path, metrics: Mapping[str, float]
) -> str:
    """Markdown: scores beside those of the champion of now, pictures, how to draw with it, and on what terms."""
    champion = client.get_registered_model(name).aliases.get(CHAMPION)
    theirs = _figures(client, client.get_model_version(name, str(champion))) if champion else None
    folders = [file.path for file in client.list_artifacts(run_id, "evaluate") if file.is_dir]
    pictures = [file.path for folder in folders for file in client.list_artifacts(run_id, folder)]
    of_sets = sorted((path for path in pictures if re.search(r"/given-\d+\.png$", path)), key=_given)
    cards = Environment(loader=PackageLoader("m2m.tracking", ""), undefined=StrictUndefined, trim_blocks=True)
    numbers = {"scores": metrics, "theirs": theirs or {}, "champion": champion}
    card = folder / "README.md"
    stated = ((metadata_load(card) if card.is_file() else None) or {}).get("terms")
    terms = stated if isinstance(stated, list) else []  # somebody else's card may say something else there
    return cards.get_template("card.md.jinja").render(
        name=name, version=version, run=run_id, pictures=of_sets[-1:], terms=terms, **numbers
    )


def _given(path: str) -> int:
    return int(path.rpartition("-")[2].removesuffix(".png"))


def _log_model(
    client: MlflowClient, run_id: str, experiment_id: str, name: str, folder: Path, tags: Mapping[str, str]
) -> str:
    """Uploads the folder and the code that draws with it as a model of the run; returns the model's id."""
    logged = client.create_logged_model(experiment_id, name, run_id, dict(tags), model_type="image sets")
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "model"
        mlflow.pyfunc.save_model(
            path=str(package),
            mlflow_model=Model(logged.artifact_location, run_id, model_uuid=logged.model_id, model_id=logged.model_id),
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={"pipeline": str(folder)},
            code_paths=[str(Path(__file__).parents[1])],  # who loads it may not have this project
            signature=SIGNATURE,
            input_example=pd.DataFrame({"image": [_example_png()]}),
            pip_requirements=[f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS],
        )
        client.log_model_artifacts(logged.model_id, str(package))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return str(logged.model_id)


def set_aliases(
    client: MlflowClient,
    name: str,
    version: str,
    *,
    metric: str,
    better: Literal["higher", "lower"],
    require: Mapping[str, float] | None = None,
) -> None:
    """Points the aliases to a new version where it deserves them; calling it again changes nothing.

    Between the look at the champion and the change no other version may do the same: the caller holds a lock.
    """
    # Numbers from a database, texts from a server.
    aliases = {alias: str(number) for alias, number in client.get_registered_model(name).aliases.items()}
    if int(aliases.get(CANDIDATE, 0)) < int(version):  # what was delivered late is not the newest
        client.set_registered_model_alias(name, CANDIDATE, version)
    ours, champion = client.get_model_version(name, version), aliases.get(CHAMPION)
    if lacks := _lacks(_figures(client, ours) or {}, require or {}):
        _log.warning("tracking: version %s of %s cannot be champion: %s", version, name, lacks)
    elif champion is None or _beats(client, ours, client.get_model_version(name, champion), metric, better):
        client.set_registered_model_alias(name, CHAMPION, version)


def _lacks(figures: Mapping[str, float], require: Mapping[str, float]) -> str:
    """The first requirement that figures do not meet, in words; empty if they meet all."""
    for metric, least in require.items():
        if metric not in figures:
            return f"it has no {metric}"
        if not figures[metric] >= least:
            return f"{metric} is {figures[metric]:.3g}, at least {least:g} is required"
    return ""


def _figures(client: MlflowClient, version: ModelVersion) -> Mapping[str, float] | None:
    """The metrics of the run that registered a version; None if the run is gone, as after ``mlflow gc``."""
    run = unless("RESOURCE_DOES_NOT_EXIST", lambda: client.get_run(str(version.run_id)))
    return run.data.metrics if run else None


def _beats(client: MlflowClient, ours: ModelVersion, theirs: ModelVersion, metric: str, better: str) -> bool:
    name, version, champion = ours.name, ours.version, theirs.version
    to_beat = _figures(client, theirs)
    if to_beat is None:
        text = "tracking: version %s replaces version %s as champion of %s: the run of that one was removed from MLflow"
        _log.warning(text, version, champion, name)
        return True
    figures = _figures(client, ours) or {}
    if ours.tags.get("manifest") != theirs.tags.get("manifest"):
        reason = "they were evaluated on different datasets"
    elif metric in figures and metric in to_beat:
        return figures[metric] > to_beat[metric] if better == "higher" else figures[metric] < to_beat[metric]
    else:
        reason = f"one of them has no {metric}"
    _log.warning("tracking: version %s stays champion of %s; version %s: %s", champion, name, version, reason)
    return False
