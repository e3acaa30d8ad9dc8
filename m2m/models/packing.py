"""How all positions of all sets are packed into one pass of training, each with the keys of the images before it.

Only speed is here: what a window holds, and why, stands in `image_set_attention`. Rows of a batch are position-major,
the longest sets first, so that those sets that have an image at a position are the first ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from m2m.models.pose import Viewpoints

Spans: TypeAlias = tuple[tuple[int, int], ...]
"""Where runs of rows begin and end."""


@dataclass(frozen=True, eq=False)
class TeacherForcing:
    """A training batch: all positions of all sets at once, the longest sets first.

    Its rows are the images to draw, then (M2M-Self) the context images, all but the last of each set. A set that is
    over has no more rows: there is no padding that anything could read, or that costs anything.
    """

    counts: tuple[int, ...]  # sets that have an image at each of the N positions; they are the first ones
    tokens: Tensor | None  # of the context images, (context rows, L, token_dim); None: each block's own (M2M-Self)
    dropped: Tensor | None  # (rows to draw) bool: from the empty set
    seen_from: Viewpoints | None = None  # the images to draw, then the context images
    first: int = 0  # the position of the first image to draw; those before it are context alone
    given: int = 1  # images that stay in every window

    @property
    def to_draw(self) -> tuple[int, ...]:
        """Rows to draw at each position that has any."""
        return self.counts[self.first :]


def first_of(x: Tensor, count: int, dim: int = 0) -> Tensor:
    """The first `count` of a dimension; all of them without a slice, which would go back through zeros and a copy."""
    return x if x.shape[dim] == count else x.narrow(dim, 0, count)


def of_positions(rows: Tensor, counts: tuple[int, ...]) -> list[Tensor]:
    """Position-major context rows (…, L, d) -> of each position but the last (B, L, d), zeros where a set is over.

    Nothing reads these zeros. Sets of one length need none, and no copy.
    """
    return [
        images if len(images) == counts[0] else F.pad(images, (0, 0, 0, 0, 0, counts[0] - len(images)))
        for images in rows.split(counts[1:])  # type: ignore[no-untyped-call]
    ]


def window_spans(images: int, length: int, *, null: int, max_context: int, given: int) -> Spans:
    """Which keys the image after so many others reads, of the rows (null + (N-1)·length) of a set.

    The null rows, then all of the images; where these are more than `max_context`, the given and the newest ones.
    """
    if images <= max_context:
        return ((0, null + images * length),)
    kept = min(given, max_context)
    newest = images - max_context + kept
    return (0, null + kept * length), (null + newest * length, null + images * length)


def windows(rows: Tensor, spans: Sequence[Spans]) -> tuple[Tensor, ...]:
    """Each window's rows of (B, heads, n, d); none for no windows."""
    return _Windows.apply(rows, *spans) if spans else ()  # type: ignore[no-untyped-call]


class _Windows(torch.autograd.Function):
    """Of keys or values (B, heads, n, d) those that each window holds. Their gradients are added up in place.

    Slices would do, but each of them goes back through a whole tensor of zeros.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, *windows: Spans) -> tuple[Tensor, ...]:
        ctx.shape, ctx.windows = rows.shape, windows  # type: ignore[attr-defined]
        parts = [[rows[:, :, start:end] for start, end in spans] for spans in windows]
        return tuple(torch.cat(of_window, dim=2) if len(of_window) > 1 else of_window[0] for of_window in parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        sets, heads, count, width = ctx.shape  # type: ignore[attr-defined]
        whole = gradients[0].new_zeros(sets, count, heads, width).transpose(1, 2)  # as the projections want them
        for spans, gradient in zip(ctx.windows, gradients, strict=True):  # type: ignore[attr-defined]
            parts = gradient.split([end - start for start, end in spans], dim=2)  # type: ignore[no-untyped-call]
            for (start, end), part in zip(spans, parts, strict=True):
                whole[:, :, start:end] += part
        return whole, *(None for _ in gradients)
