"""Pictures as people have them, of any size, orientation and kind, made into what the models were trained on."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps, ImageSequence, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from m2m.errors import UserError
from m2m.files import open_regular

Photo: TypeAlias = Image.Image | NDArray[Any] | Tensor

_BYTES: Final = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}
"""That Pillow holds a pixel in, where they are not four."""
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets a picture upright, by its EXIF orientation."""


_SOURCE: Final = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/{}"/>'
    "</rdf:RDF></x:xmpmeta>"
)

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is read. Pillow knows some forty formats more, and starts another program (Ghostscript) for one of them."""
LARGEST: Final = 1 << 28
"""Bytes that a picture may unpack to: 67 million pixels of colour, which is more than telephones take."""
FRAMES: Final = 100
"""Of an animation so many are looked at for one that shows something."""


def open_photo(source: Path | bytes, *, name: str | None = None) -> Image.Image:
    """Reads a picture that nobody vouches for; its size is judged by the header, before any pixel is decoded.

    An animation gives its first frame in which anything can be seen.

    Args:
        source: a regular file, or its content.
        name: what messages call it; the path if it is None.

    Returns:
        the decoded picture as it is stored, of any mode; its EXIF and colour profile are for `square` to heed.

    Raises:
        UserError: there is no such file, it is no picture, it is cut short, or it would unpack to an absurd size.
    """
    named = name or ("picture" if isinstance(source, bytes) else str(source))
    try:
        opened: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else open_regular(source)
        with opened as file:
            return _decoded(file, named)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{named}: no such file; give the path of a picture") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{named}: not a picture that can be read; give one of {', '.join(FORMATS)}") from error
    except Exception as error:  # whatever the readers of seven formats raise for what is damaged
        what = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{named}: cannot be read as a picture ({what}); give an undamaged file") from error


def _decoded(file: BinaryIO, named: str) -> Image.Image:
    length = file.seek(0, io.SEEK_END)
    if length > LARGEST:  # some readers take it whole
        raise UserError(f"{named}: has {length} bytes, more than {LARGEST}; give a smaller file")
    try:
        with _quiet():
            photo = Image.open(file, formats=FORMATS)
            pixels = photo.width * photo.height
            if pixels > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise Image.DecompressionBombError
            if pixels * _BYTES.get(photo.mode, 4) > LARGEST:
                raise UserError(
                    f"{named}: {photo.width} x {photo.height} pixels of mode {photo.mode} would unpack to more than "
                    f"{LARGEST} bytes; give a smaller picture"
                )
            photo.load()
            return _first_frame(photo) if is_empty(photo) else photo
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(
            f"{named}: would unpack to more than {Image.MAX_IMAGE_PIXELS} pixels; give a smaller picture"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings of what is odd but can be seen; one of a huge picture is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def is_empty(photo: Image.Image) -> bool:
    """Whether all of it is transparent."""
    if not photo.has_transparency_data:
        return False
    alpha = photo if photo.mode in ("LA", "RGBA") else photo.convert("RGBA")
    return alpha.getchannel("A").getextrema() == (0, 0)


def _first_frame(photo: Image.Image) -> Image.Image:
    """Of an animation that begins with nothing the first frame that shows something; the picture if there is none."""
    first = photo.copy()
    for frame in islice(ImageSequence.Iterator(photo), 1, FRAMES):
        frame.load()
        if not is_empty(frame):
            return frame.copy()
    return first


def square(photo: Photo, size: int) -> Image.Image:
    """An upright, opaque sRGB picture of `size` × `size` pixels: the middle of the photo, scaled by its shorter side.

    What is transparent becomes white. Greys of 16 bits are taken over their whole range; those of 32 bits and floats in
    the smallest of the ranges 0 to 1 (floats), 255 and 65535 that holds them all, else from their least to their
    greatest. EXIF and a colour profile are heeded where they can be read: what is wrong with them spoils no pixels.

    Args:
        photo: a Pillow image of any mode, an array (H, W, 3) or a tensor (3, H, W) of integers from 0 to 255 or of
            floats from 0 to 1, of any type.

    Raises:
        ValueError: an array is no such picture.
    """
    picture = photo if isinstance(photo, Image.Image) else picture_of(photo)
    space = "CMYK" if picture.mode == "CMYK" else "L" if picture.mode[0] in "1LIF" and picture.mode != "LAB" else "RGB"
    profile = _profile(picture, space)
    upright = _eight_bits(_upright(picture))
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright if upright.mode == "RGBA" else upright.convert("RGBA"))
    # Before the profile white is white, in whatever colours; and few pixels are converted faster than many.
    fitted = ImageOps.fit(upright.convert(space if profile else "RGB"), (size, size), Image.Resampling.LANCZOS)
    return _in_srgb(fitted, profile) if profile else fitted


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as its EXIF says, if that can be read. Pillow's own way writes the EXIF anew and fails where it is odd."""
    try:
        with _quiet():
            turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # whatever Pillow raises for damaged EXIF: the pixels are good
        return picture
    return picture if turn is None else picture.transpose(turn)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Greys of more than 8 bits as those of 8, and the key of what is transparent with them."""
    key = picture.info.get("transparency")
    if picture.mode.startswith("I;16"):
        levels = np.asarray(picture).astype(np.uint16)
        grey = Image.fromarray(((np.arange(1 << 16) + 128) // 257).astype(np.uint8)[levels])
        if isinstance(key, int):
            grey.putalpha(Image.fromarray(np.where(levels == key, np.uint8(0), np.uint8(255))))
        return grey
    if picture.mode in ("I", "F"):
        return Image.fromarray(_stretched(np.asarray(picture, dtype=np.float32), floats=picture.mode == "F"))
    if picture.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:  # Pillow keeps the upper of 16 bits
        picture = picture.copy()
        picture.info["transparency"] = tuple(channel >> 8 for channel in key)
    return picture


def _stretched(levels: NDArray[np.float32], *, floats: bool) -> NDArray[np.uint8]:
    """Grey levels of an unknown range over 8 bits; those that are not finite are black."""
    finite = np.isfinite(levels)
    least, most = levels.min(where=finite, initial=np.inf), levels.max(where=finite, initial=-np.inf)
    ranges = (1.0, 255.0, 65535.0) if floats else (255.0, 65535.0)
    if least < 0 or most > ranges[-1]:
        span = float(most) - float(least) or 1.0
        scaled = (levels - least) / span
    else:
        scaled = levels / next((end for end in ranges if most <= end), 1.0)
    return (np.where(finite, scaled, 0) * 255).round().astype(np.uint8)


def _profile(picture: Image.Image, space: str) -> ImageCms.ImageCmsProfile | None:
    """What says which colours the numbers of a picture are, if that can be read and speaks of such numbers."""
    content = picture.info.get("icc_profile")
    if not content:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        numbers = profile.profile.xcolor_space.strip()
    except Exception:  # whatever a damaged one raises: the numbers are taken as sRGB
        return None
    return profile if numbers == {"L": "GRAY"}.get(space, space) else None


def _in_srgb(picture: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    try:
        converted = ImageCms.profileToProfile(picture, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except ImageCms.PyCMSError:  # damaged where it had not been read before
        converted = None
    return converted or picture.convert("RGB")


def as_tensor(picture: Image.Image) -> Tensor:
    """An RGB picture as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def picture_of(array: NDArray[Any] | Tensor) -> Image.Image:
    """The RGB picture of an array (H, W, 3) or a tensor (3, H, W).

    Integers of any type are levels from 0 to 255, floats of any precision shares from 0 to 1. Nothing is clipped: what
    lies outside was meant in another way, or something went wrong before.

    Raises:
        ValueError: the shape, the type or a number is another.
    """
    numbers = _as_numpy(array)
    if numbers.ndim != 3 or numbers.shape[2] != 3 or not numbers.size:
        raise ValueError(f"a picture is an array (H, W, 3) or a tensor (3, H, W), not {tuple(array.shape)}")
    if numbers.dtype.kind not in "iuf":
        raise ValueError(f"a picture's numbers are integers from 0 to 255 or floats from 0 to 1, not {array.dtype}")
    least, most = numbers.min(), numbers.max()
    if not np.isfinite([least, most]).all():  # NaN is the least and the most wherever there is one
        raise ValueError("a picture has numbers that are not finite (NaN or Inf)")
    if numbers.dtype.kind == "f":
        if not -0.5 < least * 255 <= most * 255 < 255.5:
            raise ValueError(
                f"a picture of floats holds numbers from 0 to 1, not {least:g} to {most:g}; "
                "bring -1 to 1 there by x / 2 + 0.5, and 0 to 255 by x / 255"
            )
        numbers = (numbers.clip(0, 1) * 255).round()
    elif least < 0 or most > 255:
        raise ValueError(f"a picture of integers holds levels from 0 to 255, not {least} to {most}")
    return Image.fromarray(numbers.astype(np.uint8))


def _as_numpy(array: NDArray[Any] | Tensor) -> NDArray[Any]:
    if not isinstance(array, Tensor):
        return array
    tensor = array.detach().cpu()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()  # NumPy knows neither bfloat16 nor the 8-bit types
    return tensor.movedim(0, -1).numpy() if tensor.ndim else tensor.numpy()


def as_signal(images: Tensor) -> Tensor:
    """Pictures as networks take them: uint8 of any shape -> float32 from -1 to 1."""
    return images.float() / 127.5 - 1


def as_levels(signal: Tensor) -> Tensor:
    """Pictures as they are saved: from -1 to 1, of any shape -> uint8."""
    return ((signal / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def drawn_by_a_model(note: Mapping[str, object], *, wholly: bool = True) -> PngInfo:
    """What a PNG says of itself wherever it goes: that a model drew it, in the words of the IPTC, and a note of how.

    Args:
        wholly: nothing else is in the picture.
    """
    kind = "trainedAlgorithmicMedia" if wholly else "compositeWithTrainedAlgorithmicMedia"
    mark = PngInfo()
    # A file name may hold bytes that are no text: Python's stand-ins for them are written as JSON's escapes.
    mark.add_itxt("m2m", json.dumps(note, ensure_ascii=False).encode(errors="backslashreplace").decode())
    mark.add_itxt("XML:com.adobe.xmp", _SOURCE.format(kind))
    return mark
