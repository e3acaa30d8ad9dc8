"""What MLflow runs to draw with a registered model: this file is logged with each version and run from there."""

from __future__ import annotations

import base64
import io
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import Image


class ImageSetSampler(PythonModel):
    """Preceding images in, the next ones of the set out."""

    def load_context(self, context: PythonModelContext) -> None:
        from m2m.pipeline import M2MPipeline  # torch, and only where pictures are drawn

        self.pipeline = M2MPipeline.from_pretrained(context.artifacts["pipeline"])
        self.pipeline.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Draws `num_images` more of the set whose images are the rows of the column ``image``: base64 PNG, RGB."""
        from m2m.photos import open_photo

        options = dict(params or {})
        texts = enumerate(model_input["image"], 1)
        given = [open_photo(base64.b64decode(text, validate=True), name=f"image {number}") for number, text in texts]
        (drawn,) = self.pipeline(given, generator=options.pop("seed", 0), return_dict=False, **options)
        return pd.DataFrame({"image": [_base64_png(image) for image in drawn]})


def _base64_png(image: Image.Image) -> str:
    png = io.BytesIO()
    image.save(png, "PNG")
    return base64.b64encode(png.getvalue()).decode()


mlflow.models.set_model(ImageSetSampler())
