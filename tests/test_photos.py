"""Real pictures of every kind become what the models take; what is no picture is told so in one line."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m2m.errors import UserError
from m2m.photos import as_tensor, open_photo, square


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 128)], axis=-1).astype(np.uint8))


def test_a_picture_of_the_right_size_keeps_its_pixels() -> None:
    assert np.array_equal(np.asarray(square(gradient(64, 64), 64)), np.asarray(gradient(64, 64)))


def test_the_middle_of_a_wide_picture_is_used() -> None:
    red = np.asarray(square(gradient(300, 100), 64))[:, :, 0]
    assert red.shape == (64, 64)
    assert red[0, 0] == pytest.approx(255 / 3, abs=3)
    assert red[0, -1] == pytest.approx(255 * 2 / 3, abs=3)


def test_a_picture_taken_sideways_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270°
    gradient(64, 64).rotate(90, expand=True).save(tmp_path / "sideways.png", exif=exif)
    upright = np.asarray(square(open_photo(tmp_path / "sideways.png"), 64))
    assert np.array_equal(upright, np.asarray(gradient(64, 64)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode: str) -> None:
    photo = Image.new("RGBA", (64, 64), (0, 0, 0, 0)).convert(mode)
    if mode == "P":
        photo.info["transparency"] = photo.getpixel((0, 0))
    assert set(np.asarray(square(photo, 64)).flat) == {255}


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "I;16", "F"])
def test_pictures_of_every_mode_become_rgb(mode: str) -> None:
    assert square(Image.new(mode, (20, 30)), 64).mode == "RGB"


def test_arrays_and_tensors_are_pictures_too() -> None:
    picture = np.asarray(gradient(64, 64))
    tensor = torch.from_numpy(picture.copy()).permute(2, 0, 1)
    for photo in (picture, picture / 255.0, tensor, tensor / 255.0):
        assert np.array_equal(np.asarray(square(photo, 64)), picture)
    assert torch.equal(as_tensor(gradient(64, 64)), tensor)
    with pytest.raises(ValueError, match=r"not \(64, 64\)"):
        square(picture[:, :, 0], 64)
    with pytest.raises(ValueError, match=r"not \(64, 64, 3\)"):
        square(tensor.permute(1, 2, 0), 64)


def bomb(side: int) -> bytes:
    """A PNG that claims to be `side` pixels wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def whole_png(tmp_path: Path) -> bytes:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    return (tmp_path / "a.png").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"once upon a time", "not a picture"),
        (b"", "not a picture"),
        (bomb(10_000), "more than 89478485 pixels"),
        (bomb(60_000), "more than 89478485 pixels"),
        ("cut short", "cannot be read"),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path: Path, content: bytes | str, message: str) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(whole_png(tmp_path)[:3000] if isinstance(content, str) else content)
    with pytest.raises(UserError, match=message) as error:
        open_photo(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            open_photo(path)
