"""Contact sheets hold every picture, whole and in order."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from m2m.contact_sheet import FRAME, FRAME_COLOUR, GAP, contact_sheet


def plain(colour: int, side: int = 64) -> Image.Image:
    return Image.new("RGB", (side, side), (colour, colour, colour))


@pytest.mark.parametrize(("side", "shown"), [(8, 96), (64, 128), (96, 96), (256, 256), (512, 256)])
def test_pictures_stand_in_reading_order_and_given_ones_are_framed(side: int, shown: int) -> None:
    given, drawn = [plain(10, side)], [plain(20, side), plain(30, side), plain(40, side)]
    sheet = np.asarray(contact_sheet([(given, drawn), (drawn[:1], given)], columns=3))
    pitch = shown + 2 * FRAME + GAP
    assert sheet.shape == (3 * pitch + GAP, 3 * pitch + GAP, 3)
    expected = [[10, 20, 30], [40, None, None], [20, 10, None]]
    for row, line in enumerate(expected):
        for column, colour in enumerate(line):
            top, left = GAP + row * pitch, GAP + column * pitch
            cell = sheet[top + FRAME : top + FRAME + shown, left + FRAME : left + FRAME + shown]
            assert (cell == (255 if colour is None else colour)).all()
            framed = (row, column) in ((0, 0), (2, 0))
            assert tuple(sheet[top, left]) == (FRAME_COLOUR if framed else (255, 255, 255))
