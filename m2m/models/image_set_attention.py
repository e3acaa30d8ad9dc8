"""Image-Set Attention (paper, section 3): the tokens of an image attend to those of the images before it.

It stands in the place of Stable Diffusion's text cross-attention. Keys and values come from the context images, never
from the image itself, and always from learned null rows as well, which alone are the empty set: for the first image,
and for the unconditional half of guidance. They start as the parent's keys and values of the empty prompt, so that the
empty set begins as the empty prompt, to rounding; the paper names no such start. There is no mask, through which a NaN
would leak: an image is given a prefix of the keys, and what it must not see is not in it.

Shapes: B or S sets, N positions in a set, n context images in a window, L tokens in one of them, L0 null rows, T tokens
in the image drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from m2m.models.pose import RAY_DIM, Viewpoints

Spans: TypeAlias = tuple[tuple[int, int], ...]
"""Where runs of rows begin and end."""


@dataclass(frozen=True, eq=False)
class TeacherForcing:
    """A training batch: all positions of all sets at once, the longest sets first.

    Its rows are position-major: the images to draw, then (M2M-Self) the context images, all but the last of each set. A
    set that is over has no more rows: there is no padding that anything could read, or that costs anything.
    """

    counts: tuple[int, ...]  # sets that have an image at each of the N positions; they are the first ones
    tokens: Tensor | None  # of the context images, (context rows, L, token_dim); None: each block's own (M2M-Self)
    dropped: Tensor | None  # (rows to draw) bool: from the empty set
    seen_from: Viewpoints | None = None  # the images to draw, then the context images
    first: int = 0  # the position of the first image to draw; those before it are context alone
    given: int = 1  # images that stay in every window


class ContextCache:
    """The windows of S sets at every block: keys and values, computed once, read by all later steps and images.

    A window is the given images, which come first, and the newest drawn ones in what is left of `max_context`: memory
    is bounded however many are drawn. An image's place in it, oldest first, is its slot. (The paper says nothing of
    more images than a window holds.)

    Args:
        given: how many of the first images stay. Of more than fit, the newest do, and no drawn one is read.
    """

    def __init__(self, max_context: int, *, given: int = 1) -> None:
        self.max_context = max_context
        self.given = given
        self._appended: Counter[ImageSetAttention] = Counter()
        self._images: dict[ImageSetAttention, list[tuple[Tensor, Tensor]]] = {}
        self._windows: dict[ImageSetAttention, tuple[Tensor, Tensor]] = {}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def append(self, block: ImageSetAttention, keys: Tensor, values: Tensor) -> None:
        """Adds an image, keys and values (S, L, inner_dim); where the window is full the oldest drawn one leaves it."""
        images = self._images.setdefault(block, [])
        images.append((keys, values))
        self._appended[block] += 1
        if len(images) > self.max_context:
            only_given = self._appended[block] <= self.given
            del images[0 if only_given else min(self.given, self.max_context)]
        self._windows.pop(block, None)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def read(self, block: ImageSetAttention, sets: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the window, null rows first, (S, L0 + n·L, inner_dim): put together once an image."""
        if block not in self._windows:
            self._windows[block] = block.assemble(self._images.get(block, []), sets)
        return self._windows[block]


@dataclass(frozen=True, eq=False)
class Window:
    """What one image of each of S sets reads while it is drawn, or (`record`) while its own tokens join the cache."""

    cache: ContextCache
    unconditional: int = 0  # rows at the head of the batch that see the empty set
    record: bool = False
    seen_from: Viewpoints | None = None  # the image of each set


class ImageSetAttention(nn.Module):
    """Multi-head attention from an image to its context images, in the place of a transformer block's `attn2`.

    Args:
        dim: width of the block's tokens.
        inner_dim: width of queries, keys and values over all heads.
        token_dim: width of context tokens: `dim` for M2M-Self, the cross-attention width for M2M-DINO.
        max_context: slots of the window.
        null_tokens: rows of keys and values that are the empty set (L0), those of an empty prompt.
        value_bias: values have a bias (M2M-Self: what is read of an image before anything is learnt of it).
        with_rays: queries and keys are told the rays of their tokens.
        pool: neighbouring context tokens of a row of the image that are read as one, their mean.
        last: no block comes after this one, so that what a context image would read here, nobody reads of it.
    """

    def __init__(
        self,
        *,
        dim: int,
        inner_dim: int,
        heads: int,
        token_dim: int,
        max_context: int,
        null_tokens: int,
        value_bias: bool,
        with_rays: bool = False,
        pool: int = 1,
        last: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.last = last
        self.heads = heads
        self.max_context = max_context
        self.pool = pool
        self.to_q = nn.Linear(dim, inner_dim, bias=False)
        self.to_k = nn.Linear(token_dim, inner_dim, bias=False)
        self.to_v = nn.Linear(token_dim, inner_dim, bias=value_bias)
        self.to_out = nn.Sequential(nn.Linear(inner_dim, dim), nn.Dropout(dropout))
        self.null_keys = nn.Parameter(torch.zeros(null_tokens, inner_dim))
        self.null_values = nn.Parameter(torch.zeros(null_tokens, inner_dim))
        self.slot_embedding = nn.Parameter(torch.zeros(max_context, inner_dim))
        self.query_rays = nn.Linear(RAY_DIM, inner_dim, bias=False) if with_rays else None
        self.key_rays = nn.Linear(RAY_DIM, inner_dim, bias=False) if with_rays else None

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: TeacherForcing | Window,
        attention_mask: None = None,
    ) -> Tensor:
        """(rows, T, dim) -> (rows, T, dim). Diffusers' transformer block calls it with these names."""
        if isinstance(encoder_hidden_states, TeacherForcing):
            return self._train(hidden_states, encoder_hidden_states)
        return self._sample(hidden_states, encoder_hidden_states)

    def _train(self, hidden: Tensor, batch: TeacherForcing) -> Tensor:
        counts, sets, positions = batch.counts, batch.counts[0], len(batch.counts)
        to_draw = counts[batch.first :]
        read = hidden[sum(to_draw) :] if batch.tokens is None else batch.tokens  # (context rows, L·pool, token_dim)
        rows = self._pooled(read)  # (context rows, L, token_dim)
        length = rows.shape[1]
        image_keys, image_values = self.to_k(rows), self.to_v(rows)  # (context rows, L, inner_dim)
        if self.key_rays is not None and batch.seen_from is not None:
            rays = self._pooled(batch.seen_from.rays(read.shape[1])[sum(to_draw) :])  # (context rows, L, RAY_DIM)
            image_keys = image_keys + self.key_rays(rays)
        null_keys, null_values = self._null(sets, image_keys.dtype)  # (B, L0, inner_dim)
        keys = torch.cat([null_keys, *_of_positions(image_keys, counts)], dim=1)  # (B, L0 + (N-1)·L, inner_dim)
        values = torch.cat([null_values, *_of_positions(image_values, counts)], dim=1)
        slots = self._slots(min(positions - 1, self.max_context), length).to(keys.dtype)
        keys, values, slots = map(self._split_heads, (keys, values, slots))  # of (…, heads, n, d)
        slotted = _first(keys, slots.shape[1], dim=2) + slots  # (B, heads, L0 + min(N-1, max_context)·L, d)

        reading = to_draw if self.last or batch.tokens is not None else (*to_draw, *counts[1:])  # rows of each stream
        queries = self._queries(_first(hidden, sum(reading)), batch.seen_from)  # (rows, T, inner_dim)
        streams_of = self._split_heads(queries).split(reading)  # type: ignore[no-untyped-call]
        images, contexts = streams_of[: len(to_draw)], streams_of[len(to_draw) :]  # of (sets, heads, T, d)
        spans = [self._window(n, length, batch.given) for n in range(positions)]
        full = self.max_context + 1  # windows from here on have slid: other images are in the slots
        slid = [window + slots for window in _windows(keys, spans[full:])]
        window_keys = [*_windows(slotted, spans[:full]), *slid]  # of (B, heads, n, d)
        window_values = _windows(values, spans)
        drawn, context = [], []
        for n in range(positions):
            # Image n and context image n read the same keys.
            image = images[n - batch.first : n - batch.first + 1] if n >= batch.first else ()
            streams = (*image, *contexts[n : n + 1])
            attended = self._attend_streams(streams, window_keys[n], window_values[n]) if streams else []
            drawn.extend(attended[: len(image)])
            context.extend(attended[len(image) :])
        rows_drawn = torch.cat(drawn)  # (rows to draw, T, heads, d)
        if batch.dropped is not None:
            # All of them read the empty set, too: which ones are to, only the device knows.
            empty = [self._split_heads(x) for x in self._null(sum(to_draw), keys.dtype)]  # of (rows, heads, L0, d)
            empties = _attend(torch.cat(images), *empty)  # (rows to draw, T, heads, d)
            rows_drawn = torch.where(batch.dropped[:, None, None, None], empties, rows_drawn)
        output = self._out(torch.cat([rows_drawn, *context]) if context else rows_drawn)
        unread = len(hidden) - len(output)
        return F.pad(output, (0, 0, 0, 0, 0, unread)) if unread else output  # (rows, T, dim)

    def _sample(self, hidden: Tensor, window: Window) -> Tensor:
        conditional = hidden[window.unconditional :]  # (S, T, dim)
        if window.record and self.last:
            self.record(conditional, window.cache, window.seen_from)
            return torch.zeros_like(hidden)
        read = window.cache.read(self, sets=len(conditional))  # (S, L0 + n·L, inner_dim)
        keys, values = map(self._split_heads, read)  # (S, heads, L0 + n·L, d)
        queries = self._split_heads(self._queries(hidden, window.seen_from))  # (rows, heads, T, d)
        attended = _attend(queries[window.unconditional :], keys, values)  # (S, T, heads, d)
        if window.record:
            self.record(conditional, window.cache, window.seen_from)
        if window.unconditional:
            empty = (_first(x, len(self.null_keys), dim=2) for x in (keys, values))  # of (S, heads, L0, d)
            attended = torch.cat([_attend(queries[: window.unconditional], *empty), attended])
        return self._out(attended)  # (rows, T, dim)

    def record(self, tokens: Tensor, cache: ContextCache, seen_from: Viewpoints | None = None) -> None:
        """Adds the keys and values of a context image a set, tokens (S, L·pool, token_dim), to the cache."""
        read = self._pooled(tokens)
        keys = self.to_k(read)  # (S, L, inner_dim)
        if self.key_rays is not None and seen_from is not None:
            keys = keys + self.key_rays(self._pooled(seen_from.rays(tokens.shape[1])))
        cache.append(self, keys, self.to_v(read))

    def _queries(self, hidden: Tensor, seen_from: Viewpoints | None) -> Tensor:
        """(rows, T, dim) -> (rows, T, inner_dim)."""
        queries: Tensor = self.to_q(hidden)
        if self.query_rays is None or seen_from is None:
            return queries
        rays = self.query_rays(seen_from.rays(hidden.shape[1])[: len(hidden)])
        # Both halves of guidance draw the same view.
        return queries + (rays if len(rays) == len(hidden) else torch.cat([rays, rays]))

    def _pooled(self, tokens: Tensor) -> Tensor:
        """The tokens that are read: (images, L·pool, token_dim) -> (images, L, token_dim)."""
        return tokens if self.pool == 1 else tokens.reshape(len(tokens), -1, self.pool, tokens.shape[-1]).mean(dim=2)

    def assemble(self, images: list[tuple[Tensor, Tensor]], sets: int) -> tuple[Tensor, Tensor]:
        """One tensor of keys, one of values (S, L0 + n·L, inner_dim), from those of a window's images in slot order."""
        dtype = images[0][0].dtype if images else self.null_keys.dtype
        null_keys, null_values = self._null(sets, dtype)  # (S, L0, inner_dim)
        slots = self.slot_embedding.to(dtype)
        keys = [image_keys + slots[slot] for slot, (image_keys, _) in enumerate(images)]  # n of (S, L, inner_dim)
        return torch.cat([null_keys, *keys], dim=1), torch.cat([null_values, *(values for _, values in images)], dim=1)

    def _null(self, sets: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of the empty set, once and seen by all sets: (sets, L0, inner_dim)."""
        keys, values = (rows.to(dtype).expand(sets, -1, -1) for rows in (self.null_keys, self.null_values))
        return keys, values

    def _slots(self, images: int, length: int) -> Tensor:
        """What is added to the keys of a window, and nothing to the null rows': (L0 + images·L, inner_dim)."""
        return F.pad(self.slot_embedding[:images].repeat_interleave(length, dim=0), (0, 0, len(self.null_keys), 0))

    def _window(self, images: int, length: int, given: int) -> Spans:
        """Which of the rows (B, L0 + (N-1)·L, …), the null rows first, the image after so many others reads."""
        null = len(self.null_keys)
        if images <= self.max_context:
            return ((0, null + images * length),)
        kept = min(given, self.max_context)
        newest = images - self.max_context + kept
        return (0, null + kept * length), (null + newest * length, null + images * length)

    def _attend_streams(self, streams: tuple[Tensor, ...], keys: Tensor, values: Tensor) -> list[Tensor]:
        """Each stream (its first sets, heads, T, d) to keys and values (B, heads, n, d): (its sets, T, heads, d)."""
        count = len(streams[0])
        if len(streams) == 1 or any(len(queries) != count for queries in streams):
            return [_attend(queries, *(_first(x, len(queries)) for x in (keys, values))) for queries in streams]
        joined = _attend(torch.cat(streams, dim=2), _first(keys, count), _first(values, count))  # one call for all
        return list(joined.chunk(len(streams), dim=1))

    def _split_heads(self, x: Tensor) -> Tensor:
        """(…, n, inner_dim) -> (…, heads, n, d)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)  # type: ignore[no-any-return,no-untyped-call]

    def _out(self, attended: Tensor) -> Tensor:
        """(rows, T, heads, d) -> (rows, T, dim)."""
        return self.to_out(attended.flatten(-2))  # type: ignore[no-any-return]


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q·kᵀ / √d)·v: queries (B, heads, T, d), keys and values (B, heads, n, d) -> (B, T, heads, d)."""
    return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2)


def _first(x: Tensor, count: int, dim: int = 0) -> Tensor:
    """The first `count` of a dimension; all of them without a slice, which would go back through zeros and a copy."""
    return x if x.shape[dim] == count else x.narrow(dim, 0, count)


def _of_positions(rows: Tensor, counts: tuple[int, ...]) -> list[Tensor]:
    """Position-major context rows (…, L, d) -> of each position but the last (B, L, d), zeros where a set is over.

    Nothing reads these zeros. Sets of one length need none, and no copy.
    """
    return [
        images if len(images) == counts[0] else F.pad(images, (0, 0, 0, 0, 0, counts[0] - len(images)))
        for images in rows.split(counts[1:])  # type: ignore[no-untyped-call]
    ]


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


def _windows(rows: Tensor, windows: Sequence[Spans]) -> tuple[Tensor, ...]:
    """Each window's rows of (B, heads, n, d); none for no windows."""
    return _Windows.apply(rows, *windows) if windows else ()  # type: ignore[no-untyped-call]
