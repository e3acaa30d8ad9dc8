"""Pictures as people have them, of any size, orientation and kind, made into what the models were trained on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from m2m.arrays import picture_of
from m2m.errors import UserError

Photo: TypeAlias = Image.Image | NDArray[Any] | Tensor


def open_photo(path: Path) -> Image.Image:
    """Reads a picture file that nobody vouches for; its size is judged by the header, before any pixel is decoded.

    Raises:
        UserError: there is no such file, it is no picture, it is cut short, or it would unpack to an absurd size.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as photo:
                photo.load()
                return photo
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give the path of a picture") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path}: would unpack to more than {Image.MAX_IMAGE_PIXELS} pixels; give a smaller picture"
        ) from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not a picture that Pillow can read; give a PNG, JPEG, WebP or the like") from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow's readers raise for damaged files
        raise UserError(f"{path}: cannot be read as a picture ({error}); give an undamaged file") from error


def square(photo: Photo, size: int) -> Image.Image:
    """An upright, opaque RGB picture of `size` × `size` pixels: the middle of the photo, scaled by its shorter side.

    Args:
        photo: a Pillow image of any mode, an array (H, W, 3) or a tensor (3, H, W) of integers from 0 to 255 or of
            floats from 0 to 1, of any type.

    Raises:
        ValueError: an array is no such picture.
    """
    picture = photo if isinstance(photo, Image.Image) else picture_of(photo)
    upright = ImageOps.exif_transpose(picture)
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return ImageOps.fit(upright.convert("RGB"), (size, size), Image.Resampling.LANCZOS)


def as_tensor(picture: Image.Image) -> Tensor:
    """An RGB picture as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
