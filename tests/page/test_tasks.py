"""The report's part on the tasks, from the flat numbers of their evaluations."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from m2m.contact_sheet import animation, draw_gallery, to_png
from m2m.errors import UserError
from m2m.page.tables import MISSING
from m2m.page.tasks import TaskNumbers, task_part
from m2m.params import Variant

VARIANTS: tuple[Variant, ...] = ("self", "dino")


def view_numbers(value: float) -> dict[str, float | int | str]:
    keys = [f"{name}/given={given}" for name in ("psnr", "ssim", "perceptual") for given in (1, 2)]
    keys += [f"psnr/given=1/angle/{part}" for part in ("000-030", "090-180")]
    numbers: dict[str, float | int | str] = {"sets": 64}
    for prefix, shift in (("", 0.0), ("baseline/nearest/", -1.0), ("baseline/untuned/", -2.0)):
        for key in keys:
            known = {key: value + shift} if "angle" in key else {f"{key}/mean": value + shift, f"{key}/std": 0.5}
            if prefix != "baseline/untuned/" or "given=2" not in key:
                numbers |= {prefix + name: number for name, number in known.items()}
    return numbers


def step_numbers(value: float) -> dict[str, float | int | str]:
    numbers: dict[str, float | int | str] = {"sets": 96}
    for prefix, shift in (("", 0.0), ("true/", 0.2), ("untuned/", -0.2), ("repeated/", -0.3)):
        of_lot = {"step_order/mean": value + shift, "step_order/std": 0.1, "fid/mean": 10 * value}
        numbers |= {f"{'baseline/' if prefix else ''}{prefix}{key}": number for key, number in of_lot.items()}
    return numbers


@pytest.fixture
def plots(tmp_path: Path) -> Callable[..., dict[Variant, Path]]:
    """Folders as the evaluation fills them."""

    def fill(*, turntable: bool) -> dict[Variant, Path]:
        folders: dict[Variant, Path] = {}
        for variant in VARIANTS:
            folder = folders[variant] = tmp_path / variant
            folder.mkdir()
            pictures = np.zeros((2, 4, 64, 64, 3), np.uint8)
            gallery = draw_gallery((one[:1], one[1:]) for one in pictures)
            (folder / "given-1.png").write_bytes(to_png(gallery, ["first", "second"]))
            if turntable:
                frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
                (folder / "turntable.gif").write_bytes(animation(frames))
        return folders

    return fill


def numbers_of(make: Callable[[float], Any], *scratch: Variant) -> dict[Variant, TaskNumbers]:
    return {
        variant: TaskNumbers(make(0.5 + place), make(0.25) if variant in scratch else None)
        for place, variant in enumerate(VARIANTS)
    }


def test_views_have_a_row_a_model_and_what_turns(plots: Callable[..., Any]) -> None:
    folders = plots(turntable=True)
    part = task_part("nvs", numbers_of(view_numbers, "self", "dino"), folders)
    assert (part.title, part.sets) == ("Novel views of an object", 64)
    assert [(row.name, row.variant) for row in part.table.rows] == [
        ("M2M-Self, fine-tuned", "self"),
        ("M2M-DINO, fine-tuned", "dino"),
        ("M2M-Self, the same steps from Stable Diffusion", None),
        ("M2M-DINO, the same steps from Stable Diffusion", None),
        ("M2M-Self, not fine-tuned", None),
        ("M2M-DINO, not fine-tuned", None),
        ("The nearest given view", None),
    ]
    cells = {row.name: row.cells for row in part.table.rows}
    assert all(len(row) == len(part.table.headings) for row in cells.values())
    assert cells["M2M-Self, fine-tuned"][0] == "0.50 ± 0.50"
    assert cells["M2M-DINO, fine-tuned"][1] == "1.500 ± 0.500"
    assert cells["M2M-DINO, the same steps from Stable Diffusion"][0] == "0.25 ± 0.50"
    assert cells["M2M-DINO, not fine-tuned"][0] == "−0.50 ± 0.50"
    assert cells["M2M-Self, not fine-tuned"][3] == MISSING, "it was not drawn after two"
    assert part.angles is not None
    assert part.angles.headings == ["under 30°", "over 90°"]
    assert [row.cells for row in part.angles.rows] == [["0.50"] * 2, ["1.50"] * 2, ["−0.50"] * 2]
    for variant, source in part.turntables.items():
        kind, _, content = source.partition(",")
        assert kind == "data:image/gif;base64"
        assert base64.b64decode(content) == (folders[variant] / "turntable.gif").read_bytes()
    assert set(part.turntables) == {gallery.variant for gallery in part.galleries} == {"self", "dino"}


def test_the_perceptual_distance_is_called_lpips_only_where_it_is(plots: Callable[..., Any]) -> None:
    folders, numbers = plots(turntable=True), numbers_of(view_numbers, "self")

    def heading(*networks: str) -> str:
        of_rows = (*(one.tuned for one in numbers.values()), numbers["self"].from_scratch)
        for one, network in zip(of_rows, networks, strict=True):
            cast(dict[str, str], one)["network/perceptual"] = network
        return task_part("nvs", numbers, folders).table.headings[2]

    assert task_part("nvs", numbers, folders).table.headings[2] == "Perceptual distance ↓"
    published, own = "lpips-alexnet-v0.1@0123", "world-classifier@0123"
    assert heading(own, own, own) == "Perceptual distance ↓"
    assert heading(published, published, own) == "Perceptual distance ↓"
    assert heading(published, published, published) == "LPIPS ↓"


def test_steps_have_a_ceiling_and_a_floor_and_turn_nothing(plots: Callable[..., Any]) -> None:
    part = task_part("vpg", numbers_of(step_numbers), plots(turntable=False))
    assert part.title == "The next steps of a procedure"
    cells = {row.name: row.cells for row in part.table.rows}
    assert list(cells) == [
        *("M2M-Self, fine-tuned", "M2M-DINO, fine-tuned", "M2M-Self, not fine-tuned", "M2M-DINO, not fine-tuned"),
        *("The true steps (ceiling)", "The last given picture, repeated"),
    ]
    assert cells["M2M-Self, fine-tuned"][0] == "50.0 ± 10.0"
    assert cells["The true steps (ceiling)"][0] == "70.0 ± 10.0"
    assert cells["M2M-Self, fine-tuned"][1:] == ["5.00", MISSING]
    assert part.angles is None
    assert part.turntables == {}


def test_only_what_somebody_ran_is_compared_from_scratch(plots: Callable[..., Any]) -> None:
    part = task_part("vpg", numbers_of(step_numbers, "dino"), plots(turntable=False))
    scratch = [row.name for row in part.table.rows if "from Stable Diffusion" in row.name]
    assert scratch == ["M2M-DINO, the same steps from Stable Diffusion"]


def test_without_galleries_it_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no galleries in it; the evaluate stage must run first"):
        task_part("vpg", numbers_of(step_numbers), {"self": tmp_path})
