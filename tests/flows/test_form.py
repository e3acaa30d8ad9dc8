"""The form is made from the typed parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from flows.form import CHANGEABLE, make_form, profiles
from m2m.params_file import load_params

ROOT = Path(__file__).parents[2]
FORM = make_form(load_params(ROOT / "profiles" / "embedded.yaml"))


def test_its_fields_have_the_bounds_and_descriptions_of_the_parameters_and_no_values() -> None:
    """A value shown would be that of the moment when the flows were offered, whatever file the run starts from."""
    schema = FORM.model_json_schema()["properties"]
    assert [field["title"] for field in schema.values()] == list(CHANGEABLE)
    assert schema["generate_images_per_set"] == {
        "minimum": 2,
        "maximum": 999,
        "title": "generate.images_per_set",
        "type": "integer",
    }
    assert schema["train_variant_dino_images"]["description"].startswith("training images seen")
    assert schema["train_variant_self_learning_rate"]["exclusiveMinimum"] == 0
    assert not [name for name, field in schema.items() if "default" in field]
    assert "required" not in FORM.model_json_schema()
    assert FORM().model_dump() == {}  # nor does the default of the form itself hold any


def test_what_is_given_and_differs_from_the_file_that_the_run_starts_from_is_a_change() -> None:
    mine, smoke = load_params(ROOT / "profiles" / "embedded.yaml"), load_params(ROOT / "profiles" / "smoke.yaml")
    assert FORM().changed(mine) == {}
    assert FORM(captions_train=7, train_common_seed=3).changed(mine) == {"captions.train": 7, "train.common.seed": 3}
    given = FORM(captions_train=mine.captions.train)
    assert given.changed(mine) == {}
    assert given.changed(smoke) == {"captions.train": mine.captions.train}
    assert FORM.model_validate(given.model_dump(mode="json")) == given


@pytest.mark.parametrize("wrong", [{"captions_train": 0}, {"train_variant_self_learning_rate": 2}, {"speed": 3}])
def test_a_value_out_of_bounds_or_of_no_parameter_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        FORM(**wrong)


def test_profiles_are_the_files_there_are() -> None:
    assert profiles(ROOT) == ("embedded", "full", "gpu", "paper", "smoke")


def test_every_profile_that_draws_from_the_world_or_not_gives_a_form() -> None:
    for profile in profiles(ROOT):
        params = load_params(ROOT / "profiles" / f"{profile}.yaml")
        assert len(make_form(params).model_json_schema()["properties"]) == len(CHANGEABLE)
