"""Real pictures of every kind become what the models take; what is no picture is told so in one line."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from m2m.errors import UserError
from m2m.photos import FORMATS, as_levels, as_signal, as_tensor, open_photo, picture_of, square
from tests.mutations import Reader, survives


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


# What nobody vouches for


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(width: int, height: int, bits: int, colour: int, raw: bytes, *chunks: bytes) -> bytes:
    """A PNG of these rows, each with its filter byte."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_from_a_file_and_from_its_content(kind: str, tmp_path: Path) -> None:
    content = saved(gradient(64, 64), kind)
    (tmp_path / "misnamed.txt").write_bytes(content)
    for source in (content, tmp_path / "misnamed.txt"):
        assert np.abs(np.asarray(square(open_photo(source), 64), int) - np.asarray(gradient(64, 64), int)).mean() < 9


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "PPM", "TGA", "PCX", "DDS", "JPEG2000", "ICNS"])
def test_other_formats_are_refused_whatever_the_file_is_called(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gs = tmp_path / "gs"
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "x.png").write_bytes(saved(gradient(64, 64), kind))
    with pytest.raises(UserError, match=r"x\.png: not a picture that can be read; give one of PNG, JPEG, WEBP, "):
        open_photo(tmp_path / "x.png")
    assert not (tmp_path / "started").exists()


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    for path in (tmp_path / "fifo.png", Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match=f"{path}: cannot be read as a picture .*not a regular file"):
            open_photo(path)
    with pytest.raises(UserError, match="not the name of a file"):
        open_photo(tmp_path / "a\0.png")


def test_pixels_are_bounded_by_what_they_unpack_to(tmp_path: Path) -> None:
    header = png(9400, 9400, 8, 6, b"")
    with pytest.raises(UserError, match=r"a\.png: 9400 x 9400 pixels of mode RGBA would unpack to more than 268435456"):
        open_photo(header, name="a.png")
    grey = png(9400, 9400, 1, 0, b"".join([b"\0" + bytes(1175)] * 9400))
    assert open_photo(grey).size == (9400, 9400)
    with (tmp_path / "long.webp").open("wb") as file:
        file.write(saved(gradient(64, 64), "WEBP"))
        file.truncate(1 << 34)
    with pytest.raises(UserError, match="has 17179869184 bytes"):
        open_photo(tmp_path / "long.webp")


BIG = """
import resource, sys
from pathlib import Path
from m2m.photos import open_photo, square
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
square(open_photo(Path(sys.argv[1])), 64)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_the_biggest_transparent_picture_takes_bounded_memory(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(8192, 8192, 8, 6, b"".join([bytes(1 + 4 * 8192)] * 8192)))
    done = subprocess.run([sys.executable, "-c", BIG, tmp_path / "a.png"], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1_000_000, "kilobytes"


TURNED = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, 6, 0, 0)
"""EXIF that says to rotate by 270 degrees."""


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF"])
def test_a_picture_of_every_format_is_set_upright(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = gradient(64, 64).rotate(90, expand=True)
    upright = np.asarray(square(open_photo(saved(turned, kind, exif=exif)), 64), int)
    assert np.abs(upright - np.asarray(gradient(64, 64), int)).mean() < 6


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"garbage",
        b"II*\0\xff\xff\xff\xff",
        TURNED[:12],
        struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 2, 1, 65, 0, 0),
    ],
)
def test_bad_exif_leaves_good_pixels(kind: str, exif: bytes) -> None:
    seen = np.asarray(square(open_photo(saved(gradient(64, 64), kind, exif=b"Exif\0\0" + exif)), 64), int)
    assert np.abs(seen - np.asarray(gradient(64, 64), int)).mean() < 6


def test_an_animation_gives_its_first_frame_that_shows_something() -> None:
    empty, full = Image.new("RGBA", (64, 64)), Image.new("RGBA", (64, 64), (200, 30, 30, 255))
    other = Image.new("RGBA", (64, 64), (30, 30, 200, 255))
    for kind in ("GIF", "PNG", "WEBP", "AVIF"):
        options = {"save_all": True, "append_images": [empty.copy(), full, other], "lossless": True, "quality": 100}
        seen = np.asarray(square(open_photo(saved(empty, kind, duration=[10, 20, 30, 40], **options)), 64), int)
        assert np.abs(seen - (200, 30, 30)).max() < 20, kind
    nothing = saved(empty, "GIF", save_all=True, append_images=[empty.copy()], duration=[10, 20])
    assert set(np.asarray(square(open_photo(nothing), 64)).flat) == {255}


# Depths and colours


RAMP = np.tile(np.linspace(0, 1, 64), (64, 1))


@pytest.mark.parametrize(
    ("kind", "levels"),
    [
        ("PNG", (RAMP * 65535).astype(np.uint16)),
        ("TIFF", (RAMP * 65535).astype(np.uint16)),
        ("TIFF", (RAMP * 65535).astype(">u2")),
        ("TIFF", (RAMP * 65535).astype(np.int32)),
        ("TIFF", (RAMP * 255).astype(np.int32)),
        ("TIFF", (RAMP * 2e9).astype(np.int32)),
        ("TIFF", RAMP.astype(np.float32)),
        ("TIFF", (RAMP * 255).astype(np.float32)),
        ("TIFF", (RAMP * 65535).astype(np.float32)),
        ("TIFF", (RAMP * 8 - 4).astype(np.float32)),
    ],
)
def test_greys_of_more_than_eight_bits_keep_their_levels(kind: str, levels: np.ndarray) -> None:
    seen = np.asarray(square(open_photo(saved(Image.fromarray(levels), kind)), 64), int)
    assert np.abs(seen - (RAMP * 255)[..., None]).max() <= 1


def test_a_dark_picture_of_sixteen_bits_stays_dark_and_what_is_not_finite_is_black() -> None:
    assert np.asarray(square(Image.fromarray(np.full((64, 64), 2000, np.uint16)), 64)).max() == 8
    levels = np.full((64, 64), 0.5, np.float32)
    levels[:32], levels[0, 0] = np.nan, np.inf
    seen = np.asarray(square(Image.fromarray(levels), 64))
    assert seen[:28].max() == 0
    assert seen[40:].min() == 128
    assert np.asarray(square(Image.fromarray(np.full((64, 64), np.nan, np.float32)), 64)).max() == 0


def test_a_transparent_colour_of_sixteen_bits_is_white() -> None:
    grey = png(2, 2, 16, 0, (b"\0" + struct.pack(">2H", 0x8000, 7)) * 2, chunk(b"tRNS", struct.pack(">H", 7)))
    red = struct.pack(">6H", 0xFF12, 0, 0, 7, 7, 7)
    coloured = png(2, 2, 16, 2, (b"\0" + red) * 2, chunk(b"tRNS", struct.pack(">3H", 0xFF12, 0, 0)))
    assert np.asarray(square(open_photo(grey), 2))[0].tolist() == [[128] * 3, [255] * 3]
    assert np.asarray(square(open_photo(coloured), 2))[0].tolist() == [[255] * 3, [0] * 3]


def profile(*exchanges: tuple[bytes, bytes]) -> bytes:
    """That of sRGB with some tags called otherwise."""
    content = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for one, other in exchanges:
        content = content.replace(one, b"\0\0\0\0").replace(other, one).replace(b"\0\0\0\0", other)
    return content


SWAPPED = profile((b"rXYZ", b"gXYZ"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_a_colour_profile_says_which_colours_the_numbers_are(kind: str) -> None:
    picture = Image.new("RGB", (64, 64), (220, 40, 30))
    options = {"quality": 100, "lossless": True} if kind == "WEBP" else {"quality": 100}
    seen = np.asarray(square(open_photo(saved(picture, kind, icc_profile=SWAPPED, **options)), 64), int)
    assert np.abs(seen - (40, 220, 30)).max() < 12


def test_profiles_hold_before_white_and_for_other_modes() -> None:
    drawing = Image.new("RGBA", (64, 64))
    drawing.paste((220, 40, 30, 255), (0, 0, 64, 32))
    seen = np.asarray(square(open_photo(saved(drawing, "PNG", icc_profile=SWAPPED)), 64), int)
    assert np.abs(seen[:28] - (40, 220, 30)).max() < 4
    assert seen[40:].min() >= 254
    same = saved(gradient(64, 64), "PNG", icc_profile=profile())
    assert np.array_equal(np.asarray(square(open_photo(same), 64)), np.asarray(gradient(64, 64)))
    palette = saved(Image.new("RGB", (64, 64), (220, 40, 30)).quantize(4), "PNG", icc_profile=SWAPPED)
    assert np.abs(np.asarray(square(open_photo(palette), 64), int) - (40, 220, 30)).max() < 12


@pytest.mark.parametrize(
    "icc", [b"once upon", profile()[:200], profile()[:-300] + bytes(300), profile((b"RGB ", b"CMYK"))]
)
def test_a_profile_that_cannot_be_read_leaves_the_colours_as_they_are(icc: bytes) -> None:
    for mode in ("RGB", "L", "RGBA"):
        plain = gradient(64, 64).convert(mode)
        seen = square(open_photo(saved(plain, "PNG", icc_profile=icc)), 64)
        assert np.array_equal(np.asarray(seen), np.asarray(plain.convert("RGB")))


# Damaged files


def reader(kind: str, **options: Any) -> Reader:
    """How a small picture of a format is read all the way."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 4), dtype=np.uint8), "RGBA")
    if kind in ("JPEG", "BMP"):
        picture = picture.convert("RGB")
    exif = {} if kind in ("GIF", "BMP") else {"exif": b"Exif\0\0" + TURNED, "icc_profile": SWAPPED}
    return saved(picture, kind, **exif, **options), f"a.{kind.lower()}", lambda path: square(open_photo(path), 16)


def png_reader() -> Reader:
    return reader("PNG")


def jpeg_reader() -> Reader:
    return reader("JPEG")


def webp_reader() -> Reader:
    return reader("WEBP")


def gif_reader() -> Reader:
    return reader("GIF", save_all=True, append_images=[Image.new("RGB", (16, 16), "red")])


def bmp_reader() -> Reader:
    return reader("BMP")


def tiff_reader() -> Reader:
    return reader("TIFF", compression="tiff_lzw")


def avif_reader() -> Reader:
    return reader("AVIF")


READERS = ["png_reader", "jpeg_reader", "webp_reader", "gif_reader", "bmp_reader", "tiff_reader", "avif_reader"]


@pytest.mark.slow
@pytest.mark.fuzz
@pytest.mark.parametrize("name", READERS)
def test_damaged_pictures_are_seen_or_named(name: str) -> None:
    survives(f"tests.test_photos:{name}", 100)


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
