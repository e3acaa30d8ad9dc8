"""Image-Set Attention (paper, section 3): the tokens of an image attend to those of the images before it.

It stands in the place of Stable Diffusion's text cross-attention. For image n of a set, with tokens h_n, and its window
S_n of images before it, whose tokens are c_j,

    q = W_q h_n        k_j = W_k c_j + slot(j)        v_j = W_v c_j

    attention(n) = W_out · softmax(q · [k_∅; k_j for j in S_n]ᵀ / √d) · [v_∅; v_j for j in S_n]

What c_j is makes the variants: M2M-Self takes the tokens that the same block has of image j, in a pass of its own at
the context timestep; M2M-DINO takes DINOv2's patch tokens of image j, the same at each block, as a text would be.

- Keys and values come from images before, never from the image itself. There is no mask, through which a NaN would
  leak: an image is given a prefix of the keys, and what it must not see is not in it.
- k_∅ and v_∅ are learned null rows, always among the keys, which alone are the empty set: for the first image, and for
  the unconditional half of guidance. They start as the parent's keys and values of the empty prompt, so that the empty
  set begins as the empty prompt, to rounding; the paper names no such start.
- slot(j) tells the place of image j in the window, oldest first. Keys are linear, so it is added when they are read: an
  image that moves to another slot keeps its key.
- Views: queries and keys are told the rays of their tokens, too.

Training packs all positions of all sets into one pass (`packing`); sampling keeps keys and values (`context`).

Shapes: B or S sets, N positions in a set, n context images in a window, L tokens in one of them, L0 null rows, T tokens
in the image drawn, d channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2m.models.context import ContextCache, Window
from m2m.models.packing import TeacherForcing, first_of, of_positions, window_spans, windows
from m2m.models.pose import RAY_DIM, Viewpoints


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q·kᵀ / √d)·v: queries (B, heads, T, d), keys and values (B, heads, n, d) -> (B, T, heads, d)."""
    return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2)


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
        self, hidden_states: Tensor, encoder_hidden_states: TeacherForcing | Window, attention_mask: None = None
    ) -> Tensor:
        """(rows, T, dim) -> (rows, T, dim). Diffusers' transformer block calls it with these names."""
        if isinstance(encoder_hidden_states, TeacherForcing):
            return self._train(hidden_states, encoder_hidden_states)
        return self._sample(hidden_states, encoder_hidden_states)

    def queries(self, hidden: Tensor, seen_from: Viewpoints | None) -> Tensor:
        """Of the image drawn: (rows, T, dim) -> (rows, heads, T, d)."""
        queries: Tensor = self.to_q(hidden)
        if self.query_rays is not None and seen_from is not None:
            rays = self.query_rays(seen_from.rays(hidden.shape[1])[: len(hidden)])
            # Both halves of guidance draw the same view.
            queries = queries + (rays if len(rays) == len(hidden) else torch.cat([rays, rays]))
        return self._split_heads(queries)

    def keys_and_values(self, tokens: Tensor, rays: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of context images, without slots: (images, L·pool, token_dim) -> two of (images, L, inner_dim)."""
        read = self._pooled(tokens)
        keys: Tensor = self.to_k(read)
        values: Tensor = self.to_v(read)
        if self.key_rays is not None and rays is not None:
            keys = keys + self.key_rays(self._pooled(rays))
        return keys, values

    def null(self, sets: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of the empty set, once and seen by all sets: two of (sets, L0, inner_dim)."""
        keys, values = (rows.to(dtype).expand(sets, -1, -1) for rows in (self.null_keys, self.null_values))
        return keys, values

    def assemble(self, images: list[tuple[Tensor, Tensor]], sets: int) -> tuple[Tensor, Tensor]:
        """One tensor of keys, one of values (S, L0 + n·L, inner_dim), from those of a window's images in slot order."""
        dtype = images[0][0].dtype if images else self.null_keys.dtype
        null_keys, null_values = self.null(sets, dtype)  # (S, L0, inner_dim)
        slots = self.slot_embedding.to(dtype)
        keys = [image_keys + slots[slot] for slot, (image_keys, _) in enumerate(images)]  # n of (S, L, inner_dim)
        return torch.cat([null_keys, *keys], dim=1), torch.cat([null_values, *(values for _, values in images)], dim=1)

    def _sample(self, hidden: Tensor, window: Window) -> Tensor:
        conditional = hidden[window.unconditional :]  # (S, T, dim)
        if window.record and self.last:
            self.record(conditional, window.cache, window.seen_from)
            return torch.zeros_like(hidden)
        read = window.cache.read(self, sets=len(conditional))  # (S, L0 + n·L, inner_dim)
        keys, values = map(self._split_heads, read)  # (S, heads, L0 + n·L, d)
        queries = self.queries(hidden, window.seen_from)  # (rows, heads, T, d)
        attended = attend(queries[window.unconditional :], keys, values)  # (S, T, heads, d)
        if window.record:
            self.record(conditional, window.cache, window.seen_from)
        if window.unconditional:
            empty = (first_of(x, len(self.null_keys), dim=2) for x in (keys, values))  # of (S, heads, L0, d)
            attended = torch.cat([attend(queries[: window.unconditional], *empty), attended])
        return self._out(attended)  # (rows, T, dim)

    def record(self, tokens: Tensor, cache: ContextCache, seen_from: Viewpoints | None = None) -> None:
        """Adds the keys and values of a context image a set, tokens (S, L·pool, token_dim), to the cache."""
        rays = None if seen_from is None or self.key_rays is None else seen_from.rays(tokens.shape[1])
        cache.append(self, *self.keys_and_values(tokens, rays))

    def _train(self, hidden: Tensor, batch: TeacherForcing) -> Tensor:
        counts, sets, positions, to_draw = batch.counts, batch.counts[0], len(batch.counts), batch.to_draw
        tokens = hidden[sum(to_draw) :] if batch.tokens is None else batch.tokens  # (context rows, L·pool, token_dim)
        rays = None
        if self.key_rays is not None and batch.seen_from is not None:
            rays = batch.seen_from.rays(tokens.shape[1])[sum(to_draw) :]  # (context rows, L·pool, RAY_DIM)
        image_keys, image_values = self.keys_and_values(tokens, rays)  # (context rows, L, inner_dim)
        length = image_keys.shape[1]
        null_keys, null_values = self.null(sets, image_keys.dtype)  # (B, L0, inner_dim)
        keys = torch.cat([null_keys, *of_positions(image_keys, counts)], dim=1)  # (B, L0 + (N-1)·L, inner_dim)
        values = torch.cat([null_values, *of_positions(image_values, counts)], dim=1)
        # Slots are added to the keys of a window, and nothing to the null rows': (L0 + min(N-1, max_context)·L, …).
        slots = self.slot_embedding[: min(positions - 1, self.max_context)].repeat_interleave(length, dim=0)
        slots = F.pad(slots, (0, 0, len(self.null_keys), 0)).to(keys.dtype)
        keys, values, slots = map(self._split_heads, (keys, values, slots))  # of (…, heads, n, d)
        slotted = first_of(keys, slots.shape[1], dim=2) + slots  # (B, heads, L0 + min(N-1, max_context)·L, d)

        reading = to_draw if self.last or batch.tokens is not None else (*to_draw, *counts[1:])  # rows of each stream
        queries = self.queries(first_of(hidden, sum(reading)), batch.seen_from)  # (rows, heads, T, d)
        streams_of = queries.split(reading)  # type: ignore[no-untyped-call]
        images, contexts = streams_of[: len(to_draw)], streams_of[len(to_draw) :]  # of (sets, heads, T, d)

        spans = [
            window_spans(n, length, null=len(self.null_keys), max_context=self.max_context, given=batch.given)
            for n in range(positions)
        ]
        full = self.max_context + 1  # windows from here on have slid: other images are in the slots
        slid = [window + slots for window in windows(keys, spans[full:])]
        window_keys = [*windows(slotted, spans[:full]), *slid]  # of (B, heads, n, d)
        window_values = windows(values, spans)
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
            empty = [self._split_heads(x) for x in self.null(sum(to_draw), keys.dtype)]  # of (rows, heads, L0, d)
            empties = attend(torch.cat(images), *empty)  # (rows to draw, T, heads, d)
            rows_drawn = torch.where(batch.dropped[:, None, None, None], empties, rows_drawn)
        output = self._out(torch.cat([rows_drawn, *context]) if context else rows_drawn)
        unread = len(hidden) - len(output)
        return F.pad(output, (0, 0, 0, 0, 0, unread)) if unread else output  # (rows, T, dim)

    def _attend_streams(self, streams: tuple[Tensor, ...], keys: Tensor, values: Tensor) -> list[Tensor]:
        """Each stream (its first sets, heads, T, d) to keys and values (B, heads, n, d): (its sets, T, heads, d)."""
        count = len(streams[0])
        if len(streams) == 1 or any(len(queries) != count for queries in streams):
            return [attend(queries, *(first_of(x, len(queries)) for x in (keys, values))) for queries in streams]
        joined = attend(torch.cat(streams, dim=2), first_of(keys, count), first_of(values, count))  # one call for all
        return list(joined.chunk(len(streams), dim=1))

    def _pooled(self, tokens: Tensor) -> Tensor:
        """The tokens that are read: (images, L·pool, token_dim) -> (images, L, token_dim)."""
        return tokens if self.pool == 1 else tokens.reshape(len(tokens), -1, self.pool, tokens.shape[-1]).mean(dim=2)

    def _split_heads(self, x: Tensor) -> Tensor:
        """(…, n, inner_dim) -> (…, heads, n, d)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)  # type: ignore[no-any-return,no-untyped-call]

    def _out(self, attended: Tensor) -> Tensor:
        """(rows, T, heads, d) -> (rows, T, dim)."""
        return self.to_out(attended.flatten(-2))  # type: ignore[no-any-return]
