"""How many of the drawn images later ones read: the newest that fit, or the first ones and no more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from m2m.diffusion.stable_diffusion import encode
from m2m.models.context import ContextCache, PrecedingImages
from m2m.params import Variant
from tests.drawing import MakePipeline, latents, photos


@pytest.mark.parametrize("variant", ["self", "dino"])
@pytest.mark.slow
def test_with_one_drawn_image_in_context_later_ones_follow_the_given_and_the_first_drawn(
    make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch, variant: Variant
) -> None:
    pipeline, given, noise = (
        make_pipeline(variant),
        photos(2),
        torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
    )
    caches: list[ContextCache] = []
    append = PrecedingImages.append

    def watched(preceding: PrecedingImages, *image: Any) -> None:
        append(preceding, *image)
        caches.append(preceding.cache)

    monkeypatch.setattr(PrecedingImages, "append", watched)
    drawn = latents(pipeline, given, 4, latents=noise, drawn_context=1, guidance_scale=2.0)
    assert (len(caches), len({id(cache) for cache in caches})) == (3, 1), (
        "no other image was read, nor was one encoded to be read"
    )
    (first,) = pipeline(given, 1, latents=noise[:1], guidance_scale=2.0, num_inference_steps=2).images
    if variant == "self":  # what it reads of a drawn image are its latents, not the picture's
        exact = {np.array(first).tobytes(): drawn[:1]}

        def encoded(vae: Any, images: Tensor) -> Tensor:
            found = [exact.get(image.permute(1, 2, 0).numpy().tobytes()) for image in images]
            return encode(vae, images) if found[0] is None else torch.cat([one for one in found if one is not None])

        monkeypatch.setattr("m2m.pipeline.encode", encoded)
    for k in range(1, 4):
        alone = latents(pipeline, [*given, first], 1, latents=noise[k : k + 1], guidance_scale=2.0)
        torch.testing.assert_close(drawn[k : k + 1], alone, rtol=1e-4, atol=1e-5)
    usual = latents(pipeline, given, 4, latents=noise, guidance_scale=2.0)
    torch.testing.assert_close(usual[:2], drawn[:2])
    assert (usual[2:] - drawn[2:]).abs().max() > 1e-3


@pytest.mark.parametrize("variant", ["self", "dino"])
@pytest.mark.parametrize("count", [0, 2])
def test_without_drawn_images_in_context_each_is_drawn_as_if_it_were_the_only_one(
    make_pipeline: MakePipeline, variant: Variant, count: int
) -> None:
    pipeline, given, noise = (
        make_pipeline(variant),
        photos(2)[:count],
        torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
    )
    options = {"guidance_scale": 2.0, "drawn_context": 0}
    drawn = latents(pipeline, given, 3, latents=noise, **options)
    for k in range(3):
        alone = latents(pipeline, given, 1, latents=noise[k : k + 1], guidance_scale=2.0)
        torch.testing.assert_close(drawn[k : k + 1], alone, rtol=1e-4, atol=1e-5)
    uncached = latents(pipeline, given, 3, latents=noise, use_cache=False, **options)
    torch.testing.assert_close(uncached, drawn, rtol=1e-4, atol=1e-5)


def test_the_first_drawn_images_stay_in_a_window_that_has_no_place_for_all_that_are_wanted(
    make_pipeline: MakePipeline,
) -> None:
    pipeline, given = make_pipeline("self", max_context=3), photos(2)
    few, many = (latents(pipeline, given, 4, drawn_context=number) for number in (1, 9))
    assert torch.equal(few, many)
    with pytest.raises(ValueError, match="drawn_context is a number of drawn images, or None, not -1"):
        latents(pipeline, given, 1, drawn_context=-1)
