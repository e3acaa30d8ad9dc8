"""Pictures as people have them, of any size, orientation and kind, made into what the models were trained on."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from m2m.errors import UserError
from m2m.files import open_regular

Photo: TypeAlias = Image.Image | NDArray[Any] | Tensor

_BYTES: Final = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}
"""That Pillow holds a pixel in, where they are not four."""


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
        with io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file:
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
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # of what is odd but can be seen
            warnings.simplefilter("error", Image.DecompressionBombWarning)
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
            frame = 0
            while getattr(photo, "is_animated", False) and _is_empty(photo) and frame < FRAMES:
                frame += 1
                photo.seek(frame)
                photo.load()
            return photo
    except EOFError:  # no frame shows anything
        return photo
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(
            f"{named}: would unpack to more than {Image.MAX_IMAGE_PIXELS} pixels; give a smaller picture"
        ) from error


def _is_empty(photo: Image.Image) -> bool:
    """Whether all of it is transparent."""
    return photo.has_transparency_data and photo.convert("RGBA").getchannel("A").getextrema() == (0, 0)


def square(photo: Photo, size: int) -> Image.Image:
    """An upright, opaque RGB picture of `size` × `size` pixels: the middle of the photo, scaled by its shorter side.

    Args:
        photo: a Pillow image of any mode, an array (H, W, 3) or a tensor (3, H, W), of uint8 or of floats from 0 to 1.
    """
    picture = photo if isinstance(photo, Image.Image) else _from_array(photo)
    upright = ImageOps.exif_transpose(picture)
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return ImageOps.fit(upright.convert("RGB"), (size, size), Image.Resampling.LANCZOS)


def _from_array(photo: NDArray[Any] | Tensor) -> Image.Image:
    array = photo.detach().permute(1, 2, 0).cpu().numpy() if isinstance(photo, Tensor) else photo
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"a picture is an array (H, W, 3) or a tensor (3, H, W), not {tuple(photo.shape)}")
    if array.dtype != np.uint8:
        array = (array.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(array)


def as_tensor(picture: Image.Image) -> Tensor:
    """An RGB picture as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
