"""Images and seeds in all the ways that people give them; what is none is told in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from m2m.given import pixels_of, seeds_of_sets, sets_of

PICTURE = Image.new("RGB", (8, 8))
ARRAYS = np.zeros((2, 8, 8, 3), np.uint8)
TENSORS = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("images", "counts", "nested"),
    [
        ([], [0], False),
        ([PICTURE], [1], False),
        ((PICTURE, ARRAYS[0], TENSORS[0]), [3], False),
        (ARRAYS, [2], False),
        (TENSORS, [2], False),
        (iter([PICTURE, PICTURE]), [2], False),
        (np.array([PICTURE, None], dtype=object)[:1], [1], False),
        ([[]], [0], True),
        ([[PICTURE], (PICTURE, PICTURE), []], [1, 2, 0], True),
        ([ARRAYS, TENSORS, [PICTURE]], [2, 2, 1], True),
        (ARRAYS[None], [2], True),
        (TENSORS[None].expand(3, -1, -1, -1, -1), [2, 2, 2], True),
    ],
)
def test_sets_are_lists_of_pictures(images: Any, counts: list[int], nested: bool) -> None:
    sets, came_nested = sets_of(images)
    assert ([len(pictures) for pictures in sets], came_nested) == (counts, nested)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("cat.png", r"not the path 'cat.png'; give \[PIL"),
        (Path("cat.png"), r"not the path PosixPath\('cat.png'\)"),
        (PICTURE, r"not a single one; give \[picture\]"),
        (ARRAYS[0], "not a single one"),
        (TENSORS[0], "not a single one"),
        (ARRAYS[0, :, :, 0], "not a single one"),
        (["cat.png"], r"images\[0\] is the path 'cat.png'; give a Pillow image"),
        ([[PICTURE], [PICTURE, Path("a")]], r"images\[1\]\[1\] is the path"),
        ([PICTURE, None], r"images\[1\] is of type NoneType"),
        ([[[PICTURE]]], r"images\[0\]\[0\] is of type list"),
        ([PICTURE, [PICTURE]], "not of both"),
        ([ARRAYS, PICTURE], "not of both"),
        (None, "not of type NoneType"),
        (5, "not of type int"),
        ({"image": PICTURE}, "not of type dict"),
    ],
)
def test_what_is_no_list_of_pictures_is_told_in_one_line(images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        sets_of(images)
    assert "\n" not in str(error.value)


def test_which_picture_is_none_is_told() -> None:
    with pytest.raises(ValueError, match=r"^given image 1 of set 2: .* not 0 to 5; "):
        pixels_of([[], [PICTURE], [PICTURE, np.full((8, 8, 3), [0.0, 1.0, 5.0])]], 8)
    assert pixels_of([[], [PICTURE, TENSORS[0]]], 4)[1][1].shape == (3, 4, 4)


def test_seeds_are_integers_or_generators() -> None:
    used = torch.Generator().manual_seed(5)
    for seeds in ([5, 6], (np.int64(5), np.uint8(6)), np.array([5, 6]), torch.tensor([5, 6]), range(5, 7), [used, 6]):
        assert seeds_of_sets(seeds, 2, True) == [5, 6]
    for seed in (5, np.int32(5), np.array(5), torch.tensor(5), used):
        assert seeds_of_sets(seed, 1, False) == [5]
        assert seeds_of_sets(seed, 2, True) == seeds_of_sets(5, 2, True) != [5, 5]
    for wrong, kind in ((1.5, "float"), ("7", "str"), (np.random.default_rng(1), "Generator"), ([1, None], "NoneType")):
        with pytest.raises(ValueError, match=kind) as error:
            seeds_of_sets(wrong, 2, True)
        assert "\n" not in str(error.value)
