"""The form is made from the typed parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from flows.form import CHANGEABLE, make_form, profiles
from m2m.params_file import load_params

ROOT = Path(__file__).parents[2]
FORM = make_form(load_params(ROOT / "params.yaml"))


def test_its_fields_have_the_values_bounds_and_descriptions_of_the_parameters() -> None:
    schema = FORM.model_json_schema()["properties"]
    assert [field["title"] for field in schema.values()] == list(CHANGEABLE)
    params = load_params(ROOT / "params.yaml")
    assert schema["generate_images_per_set"] == {
        "default": params.generate.images_per_set,
        "minimum": 2,
        "maximum": 999,
        "title": "generate.images_per_set",
        "type": "integer",
    }
    assert schema["train_variant_dino_images"]["description"].startswith("training images seen")
    assert schema["train_variant_self_learning_rate"]["exclusiveMinimum"] == 0


def test_what_differs_from_the_file_is_a_change() -> None:
    assert FORM().changed() == {}
    assert FORM(captions_train=7, train_common_seed=3).changed() == {"captions.train": 7, "train.common.seed": 3}
    same = load_params(ROOT / "params.yaml").generate.guidance_scale
    assert FORM(generate_guidance_scale=same).changed() == {}


@pytest.mark.parametrize("wrong", [{"captions_train": 0}, {"train_variant_self_learning_rate": 2}, {"speed": 3}])
def test_a_value_out_of_bounds_or_of_no_parameter_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        FORM(**wrong)


def test_profiles_are_the_files_there_are() -> None:
    assert profiles(ROOT) == ("embedded", "full", "gpu", "paper", "smoke")


def test_every_profile_that_draws_from_the_world_or_not_gives_a_form() -> None:
    for profile in profiles(ROOT):
        make_form(load_params(ROOT / "profiles" / f"{profile}.yaml"))
