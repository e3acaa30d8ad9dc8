"""Pictures as arrays and tensors: which numbers they may hold, and that no others are taken for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


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
