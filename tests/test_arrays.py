"""Arrays are pictures where their numbers can mean only one thing; else one is told, and nothing is clipped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from m2m.arrays import as_levels, as_signal, picture_of

LEVELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
LEVELS[0, 0] = 0, 128, 255
TENSOR = torch.from_numpy(LEVELS.copy()).permute(2, 0, 1)


@pytest.mark.parametrize(
    "array",
    [
        LEVELS,
        *(LEVELS.astype(kind) for kind in ("int16", "uint16", "int32", "int64", "uint64", ">i4")),
        *((LEVELS / 255).astype(kind) for kind in ("float16", "float32", "float64", "longdouble")),
        LEVELS[:, ::-1][:, ::-1],
        TENSOR,
        *(TENSOR.to(kind) for kind in (torch.int16, torch.int64, torch.uint16)),
        *((TENSOR.double() / 255).to(kind) for kind in (torch.float16, torch.float32, torch.float64)),
        (TENSOR / 255).requires_grad_(),
    ],
    ids=lambda array: f"{type(array).__name__} {array.dtype}",
)
def test_numbers_of_every_type_are_the_same_picture(array: Any) -> None:
    picture = picture_of(array)
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), LEVELS)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float8_e4m3fn])
def test_coarse_floats_are_pictures_to_their_precision(kind: torch.dtype) -> None:
    exact = (TENSOR / 255).to(kind)
    found = torch.from_numpy(np.array(picture_of(exact))).permute(2, 0, 1)
    assert torch.equal(found, (exact.float() * 255).round().to(torch.uint8))


def test_what_rounds_to_a_level_is_within() -> None:
    array = np.array([[[-0.0015, 1.0015, 0.5]]])
    assert np.asarray(picture_of(array)).tolist() == [[[0, 255, 128]]]


def with_one(array: np.ndarray, number: float) -> np.ndarray:
    array = array.copy()
    array[1, 2, 0] = number
    return array


UNIT = (LEVELS / 255).astype(np.float32)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (LEVELS.astype(np.float32), "floats holds numbers from 0 to 1, not 0 to 255; .* 0 to 255 by x / 255"),
        (UNIT * 2 - 1, "not -1 to 1; bring -1 to 1 there by x / 2"),
        (torch.from_numpy(UNIT * 2 - 1).permute(2, 0, 1).bfloat16(), "not -1 to 1;"),
        (with_one(UNIT, 1.01), "not 0 to 1.01;"),
        (with_one(UNIT, -0.01), "not -0.01 to 1;"),
        (with_one(UNIT, np.nan), "not finite"),
        (with_one(UNIT, np.inf), "not finite"),
        (with_one(UNIT, -np.inf), "not finite"),
        (torch.full((3, 4, 4), torch.nan, dtype=torch.bfloat16), "not finite"),
        (LEVELS.astype(np.uint16) * 257, "levels from 0 to 255, not 0 to 65535"),
        (with_one(LEVELS.astype(np.int64), -1), "levels from 0 to 255, not -1 to 255"),
        (LEVELS > 127, "not bool"),
        (LEVELS.astype(complex), "not complex128"),
        (LEVELS.astype(str), "not <U"),
        (LEVELS.astype(object), "not object"),
        (LEVELS[:, :, 0], r"not \(5, 7\)"),
        (LEVELS[:, :, :2], r"not \(5, 7, 2\)"),
        (LEVELS[:0], r"not \(0, 7, 3\)"),
        (TENSOR.permute(1, 2, 0), r"a tensor \(3, H, W\), not \(5, 7, 3\)"),
        (torch.tensor(1.0), r"not \(\)"),
    ],
)
def test_what_can_be_no_picture_is_told_in_one_line(array: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        picture_of(array)
    assert "\n" not in str(error.value)


def test_a_signal_spans_minus_one_to_one_and_levels_bring_it_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    signal = as_signal(levels)
    torch.testing.assert_close(signal.flatten()[[0, 255, 51]], torch.tensor([-1.0, 1.0, -0.6]))
    assert torch.equal(as_levels(signal), levels)
    assert as_levels(torch.tensor([-1.5, 1.5])).tolist() == [0, 255]
