"""Image-Set Attention against attention written out for one image at a time, and what it promises about its work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from m2m.models.image_set_attention import ContextCache, ImageSetAttention, TeacherForcing, Window

SETS, POSITIONS, LENGTH, DIM, TOKEN_DIM, INNER, HEADS = 2, 6, 5, 12, 10, 16, 4
NULL = 3


def attention(*, max_context: int, token_dim: int = TOKEN_DIM) -> ImageSetAttention:
    torch.manual_seed(0)
    module = ImageSetAttention(
        dim=DIM,
        inner_dim=INNER,
        heads=HEADS,
        token_dim=token_dim,
        max_context=max_context,
        null_tokens=NULL,
        value_bias=False,
    )
    with torch.no_grad():
        module.null_keys.normal_()
        module.null_values.normal_()
        module.slot_embedding.normal_()
    return module


def attend_to(module: ImageSetAttention, queries: Tensor, images: list[Tensor]) -> Tensor:
    """One set: queries (T, DIM) attend to the null rows and to the window's images (L, token_dim), head by head."""
    q = module.to_q(queries)
    k = torch.cat([module.null_keys, *(module.to_k(i) + module.slot_embedding[s] for s, i in enumerate(images))])
    v = torch.cat([module.null_values, *map(module.to_v, images)])
    heads = []
    for part in torch.arange(INNER).chunk(HEADS):
        scores = q[:, part] @ k[:, part].T / len(part) ** 0.5
        heads.append(scores.softmax(dim=-1) @ v[:, part])
    return module.to_out(torch.cat(heads, dim=-1))


def window_of(position: int, max_context: int, given: int = 1) -> list[int]:
    """Which images the one at `position` reads, in slot order (DESIGN: all given ones, then the newest others)."""
    kept, others = list(range(position))[:given], list(range(position))[given:]
    room = max_context - len(kept)
    return [*kept[-max_context:], *(others[-room:] if room > 0 else [])]


WINDOWS = pytest.mark.parametrize(
    ("max_context", "given"), [(1, 1), (2, 1), (3, 1), (3, 2), (4, 2), (4, 3), (5, 4), (8, 1), (8, 3)]
)


@WINDOWS
def test_training_reads_exactly_the_window_of_foreign_tokens(max_context: int, given: int) -> None:
    module = attention(max_context=max_context)
    hidden, tokens = torch.randn(POSITIONS * SETS, 7, DIM), torch.randn(POSITIONS - 1, SETS, LENGTH, TOKEN_DIM)
    batch = TeacherForcing(counts=(SETS,) * POSITIONS, tokens=tokens.flatten(0, 1), dropped=None, given=given)
    result = module(hidden, batch)
    for n in range(POSITIONS):
        for s in range(SETS):
            images = [tokens[i, s] for i in window_of(n, max_context, given)]
            torch.testing.assert_close(result[n * SETS + s], attend_to(module, hidden[n * SETS + s], images))


@WINDOWS
def test_gradients_reach_each_token_from_every_window_that_holds_it(max_context: int, given: int) -> None:
    module = attention(max_context=max_context)
    hidden, tokens = torch.randn(POSITIONS * SETS, 7, DIM), torch.randn(POSITIONS - 1, SETS, LENGTH, TOKEN_DIM)
    tokens.requires_grad_()
    weight = torch.randn(POSITIONS * SETS, 7, DIM)
    batch = TeacherForcing(counts=(SETS,) * POSITIONS, tokens=tokens.flatten(0, 1), dropped=None, given=given)
    written_out = [
        attend_to(module, hidden[n * SETS + s], [tokens[i, s] for i in window_of(n, max_context, given)])
        for n in range(POSITIONS)
        for s in range(SETS)
    ]
    learnt = [tokens, *module.parameters()]
    ours, expected = (
        torch.autograd.grad((weight * result).sum(), learnt)
        for result in (module(hidden, batch), torch.stack(written_out))
    )
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@WINDOWS
def test_training_on_own_tokens_draws_and_reads_in_one_pass(max_context: int, given: int) -> None:
    module = attention(max_context=max_context, token_dim=DIM)
    hidden = torch.randn((2 * POSITIONS - 1) * SETS, LENGTH, DIM)
    dropped = torch.rand(POSITIONS, SETS) < 0.5
    counts = (SETS,) * POSITIONS
    result = module(hidden, TeacherForcing(counts=counts, tokens=None, dropped=dropped.flatten(), given=given))
    noisy, context = hidden.view(-1, SETS, LENGTH, DIM).split([POSITIONS, POSITIONS - 1])
    drawn, read = result.view(-1, SETS, LENGTH, DIM).split([POSITIONS, POSITIONS - 1])
    for n in range(POSITIONS):
        for s in range(SETS):
            images = [context[i, s] for i in window_of(n, max_context, given)]
            seen = [] if dropped[n, s] else images
            torch.testing.assert_close(drawn[n, s], attend_to(module, noisy[n, s], seen))
            if n < POSITIONS - 1:  # dropping empties the context of what is drawn, not of what is read
                torch.testing.assert_close(read[n, s], attend_to(module, context[n, s], images))


@WINDOWS
def test_the_cache_reads_the_same_window_and_keeps_no_more(max_context: int, given: int) -> None:
    module, cache = attention(max_context=max_context), ContextCache(max_context, given=given)
    tokens = torch.randn(POSITIONS, SETS, LENGTH, TOKEN_DIM)
    for n in range(POSITIONS):
        hidden = torch.randn(SETS, 7, DIM)
        result = module(hidden, Window(cache))
        for s in range(SETS):
            images = [tokens[i, s] for i in window_of(n, max_context, given)]
            torch.testing.assert_close(result[s], attend_to(module, hidden[s], images))
        guided = module(torch.cat([hidden, hidden]), Window(cache, unconditional=SETS))
        torch.testing.assert_close(guided[SETS:], result)
        torch.testing.assert_close(guided[0], attend_to(module, hidden[0], []))
        module.record(tokens[n], cache)
    keys, values = cache.read(module, SETS)
    assert keys.shape == values.shape == (SETS, NULL + min(max_context, POSITIONS) * LENGTH, INNER)


@pytest.mark.parametrize(
    ("given", "kept"),
    [(0, [7, 8, 9]), (1, [0, 8, 9]), (2, [0, 1, 9]), (3, [0, 1, 2]), (5, [2, 3, 4]), (12, [7, 8, 9])],
)
def test_given_images_stay_and_of_too_many_the_newest(given: int, kept: list[int]) -> None:
    module, cache = attention(max_context=3), ContextCache(3, given=given)
    for image in range(10):
        cache.append(module, *torch.full((2, SETS, 1, INNER), float(image)))
    _, values = cache.read(module, SETS)
    assert values[0, NULL:, 0].tolist() == kept


def test_an_image_reads_before_it_is_recorded() -> None:
    module, cache = attention(max_context=3, token_dim=DIM), ContextCache(3)
    hidden = torch.randn(SETS, LENGTH, DIM)
    torch.testing.assert_close(module(hidden, Window(cache, record=True)), module(hidden, Window(ContextCache(3))))
    images = [hidden[0]]
    torch.testing.assert_close(module(hidden, Window(cache))[0], attend_to(module, hidden[0], images))


class Calls:
    """Stands for the attention kernel, calls it and remembers with what."""

    def __init__(self) -> None:
        self.kernel = F.scaled_dot_product_attention
        self.keys: list[Tensor] = []

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor, **options: Any) -> Tensor:
        assert not options, "a mask or a causal flag"
        self.keys.append(keys)
        return self.kernel(queries, keys, values)


def test_one_unmasked_call_a_position_on_views_of_the_same_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    module, calls = attention(max_context=POSITIONS, token_dim=DIM), Calls()
    monkeypatch.setattr(F, "scaled_dot_product_attention", calls)
    hidden = torch.randn((2 * POSITIONS - 1) * SETS, LENGTH, DIM)
    module(hidden, TeacherForcing(counts=(SETS,) * POSITIONS, tokens=None, dropped=None))
    assert [keys.shape[2] for keys in calls.keys] == [NULL + n * LENGTH for n in range(POSITIONS)]
    assert len({keys.data_ptr() for keys in calls.keys}) == 1


def test_keys_are_put_together_once_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    module, cache, calls = attention(max_context=3), ContextCache(3), Calls()
    module.record(torch.randn(SETS, LENGTH, TOKEN_DIM), cache)
    monkeypatch.setattr(F, "scaled_dot_product_attention", calls)
    for _ in range(3):  # denoising steps
        module(torch.randn(SETS, 7, DIM), Window(cache))
    assert len({keys.data_ptr() for keys in calls.keys}) == 1


def test_tokens_that_are_alike_read_the_same_pooled() -> None:
    torch.manual_seed(0)
    block, pooled = (
        ImageSetAttention(
            dim=8, inner_dim=8, heads=2, token_dim=8, max_context=3, null_tokens=NULL, value_bias=True, pool=pool
        )
        for pool in (1, 2)
    )
    with torch.no_grad():
        block.null_keys.fill_(-1e4)  # far away: what is read are the context's tokens alone
        block.to_q.weight.copy_(torch.eye(8))
        block.to_k.weight.copy_(torch.eye(8))
        pooled.load_state_dict(block.state_dict())
        hidden, tokens = torch.rand(1, 5, 8), torch.rand(1, 3, 8).repeat_interleave(2, dim=1)
        caches = ContextCache(3), ContextCache(3)
        outputs = []
        for one, cache in zip((block, pooled), caches, strict=True):
            one.record(tokens, cache)
            outputs.append(one(hidden, Window(cache)))
    torch.testing.assert_close(*outputs)
