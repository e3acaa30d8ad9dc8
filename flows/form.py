"""The form of a flow run: what people change, with the descriptions and bounds of `m2m.params` and today's values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo

from m2m.params import Params

CHANGEABLE = (
    "captions.train",
    "captions.validation",
    "captions.test",
    "generate.seed",
    "generate.images_per_set",
    "generate.guidance_scale",
    "train.common.seed",
    "train.variant.self.images",
    "train.variant.self.learning_rate",
    "train.variant.dino.images",
    "train.variant.dino.learning_rate",
    "evaluate.mis.guidance_scale",
)
"""The keys of params.yaml that the form shows; ``dvc exp run -S`` changes any."""


class Form(BaseModel):
    """Values for the changeable keys; each field's title is its key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def changed(self) -> dict[str, Any]:
        """By key, what is not as in params.yaml."""
        fields = type(self).model_fields
        return {
            str(field.title): value for name, field in fields.items() if (value := getattr(self, name)) != field.default
        }


def make_form(params: Params) -> type[Form]:
    """A model with a field a changeable key, whose default is the value in `params`."""
    fields: dict[str, Any] = {}
    for key in CHANGEABLE:
        value, info = _look_up(params, key)
        kind = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
        fields[key.replace(".", "_")] = (kind, Field(default=value, title=key, description=info.description))
    return create_model("Changes", __base__=Form, **fields)


def profiles(checkout: Path) -> tuple[str, ...]:
    """The names of the parameter files below ``profiles/``."""
    return tuple(sorted(path.stem for path in (checkout / "profiles").glob("*.yaml")))


def _look_up(params: Params, key: str) -> tuple[Any, FieldInfo]:
    value: Any = params
    for name in key.split("."):
        found = {info.alias or field: (field, info) for field, info in type(value).model_fields.items()}
        field, info = found[name]
        value = getattr(value, field)
    return value, info
