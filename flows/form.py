"""The form of a flow run: what people change, with the descriptions and bounds of `m2m.params`.

It holds no values of its own. The pages show a form as it was when the flows were offered, and beside it a choice of
profiles: whatever value stood there would be that of another moment, or of another file, than the run's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model, model_serializer
from pydantic.fields import FieldInfo

from m2m.params import Params

CHANGEABLE = (
    "evaluate.mis.guidance_scale",
    "train.variant.dino.images",
    "train.variant.self.images",
    "train.variant.dino.learning_rate",
    "train.variant.self.learning_rate",
    "train.common.seed",
    "generate.guidance_scale",
    "generate.images_per_set",
    "generate.seed",
    "captions.train",
    "captions.validation",
    "captions.test",
)
"""The keys of params.yaml that the form shows, what is changed most first; ``dvc exp run -S`` changes any."""


class Form(BaseModel):
    """Values for the changeable keys; each field's title is its key. What is not given stays as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def changed(self, params: Params) -> dict[str, Any]:
        """By key, what is given and is not as in `params`."""
        fields = type(self).model_fields
        given = {str(fields[name].title): getattr(self, name) for name in fields if name in self.model_fields_set}
        return {key: value for key, value in given.items() if value != _look_up(params, key)[0]}

    @model_serializer
    def _given(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.model_fields_set}


def make_form(params: Params) -> type[Form]:
    """A model with a field a changeable key, of its type in `params`; a field has no value until it is given."""
    fields: dict[str, Any] = {}
    for key in CHANGEABLE:
        _, info = _look_up(params, key)
        kind = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
        # A default would be shown, and what is made by a factory is not.
        unset = Field(default_factory=_nothing, title=key, description=info.description)
        fields[key.replace(".", "_")] = (kind, unset)
    return create_model("Changes", __base__=Form, **fields)


def _nothing() -> None:
    return None


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
