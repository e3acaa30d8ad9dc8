"""The pipeline of a model that is told from where a picture is seen."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from m2m.models.context import dino_pixels, dino_tokens
from m2m.models.pose import POSE_DIM, relative_poses
from m2m.models.unet import ContextImages, ImageSetUNet
from m2m.params import Variant
from m2m.pipeline import M2MPipeline, load_pipeline
from m2m.world.cameras import Camera
from tests.drawing import MakePipeline, latents, photos, pipeline_around

VARIANTS = pytest.mark.parametrize("variant", ["self", "dino"])
CAMERAS = np.stack(
    [
        Camera(azimuth, elevation, distance).matrix()
        for azimuth, elevation, distance in ((10, 20, 2.0), (80, -5, 2.5), (200, 40, 2.2), (300, 0, 3.0), (45, 60, 2.1))
    ]
)
"""Of two given pictures and three to draw."""


@pytest.fixture(scope="module")
def make_pipeline(tiny_stable_diffusion: Path, tiny_dino: Path) -> MakePipeline:
    """Pipelines whose networks heed what they see and from where, each made once."""

    @cache
    def make(variant: Variant, *, max_context: int = 8, poses: bool = True) -> M2MPipeline:
        dino = variant == "dino"
        unet = ImageSetUNet.from_stable_diffusion(
            tiny_stable_diffusion, variant=variant, max_context=max_context, context_dim=32 if dino else 0
        )
        unet = ImageSetUNet.with_poses(unet, pose_dim=POSE_DIM, seed=0) if poses else unet
        draws = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in unet.context_parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=draws)
        return pipeline_around(unet.eval(), tiny_stable_diffusion, tiny_dino)

    return make


def turned(cameras: np.ndarray, degrees: float) -> np.ndarray:
    """The cameras as they are named where the world's axes are turned about z."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.concatenate([cameras[..., :3] @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]), cameras[..., 3:]], axis=-1)


@VARIANTS
def test_the_cache_changes_nothing_but_rounding(make_pipeline: MakePipeline, variant: Variant) -> None:
    pipeline = make_pipeline(variant, max_context=3)
    options = {"poses": CAMERAS, "guidance_scale": 2.0, "context_timestep": 100}
    cached, anew = (latents(pipeline, photos(2), 3, use_cache=use_cache, **options) for use_cache in (True, False))
    torch.testing.assert_close(cached, anew, rtol=1e-4, atol=1e-5)


@VARIANTS
@pytest.mark.parametrize("max_context", [8, 3])
@torch.no_grad()
def test_each_step_predicts_what_the_training_pass_predicts(
    make_pipeline: MakePipeline, variant: Variant, max_context: int
) -> None:
    pipeline, given, count = make_pipeline(variant, max_context=max_context), photos(2), 3
    steps: list[tuple[Tensor, Tensor, Tensor]] = []

    def listen(_: object, inputs: tuple[Any, ...], output: tuple[Tensor]) -> None:
        sample, timestep, window = inputs
        if not window.record:
            steps.append((sample, timestep, output[0]))

    options = {"guidance_scale": 1.0, "poses": CAMERAS, "generator": 7, "num_inference_steps": 2}
    with pipeline.unet.register_forward_hook(listen):
        drawn = latents(pipeline, given, count, **options)
    if variant == "self":
        images = torch.stack([torch.from_numpy(np.array(photo)) for photo in given]).permute(0, 3, 1, 2) / 127.5 - 1
        encoded = pipeline.vae.encode(images).latent_dist.mode() * pipeline.vae.config.scaling_factor
        context = torch.cat([encoded, drawn])
    else:
        pictures = [*given, *pipeline(given, count, **options).images]
        images = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])
        pixels = dino_pixels(images.permute(0, 3, 1, 2), pipeline.feature_extractor)
        context = dino_tokens(pipeline.image_encoder, pixels)
    poses = relative_poses(torch.from_numpy(CAMERAS))[None]  # (1, 5, 12)
    assert len(steps) == 2 * count
    for call, (sample, timestep, prediction) in enumerate(steps):
        position = len(given) + call // 2
        noisy = torch.zeros(1, position + 1, 4, 8, 8)
        noisy[:, position] = sample
        levels = torch.zeros(1, position, dtype=torch.long)
        sets = ContextImages(context[None, :position], levels, poses=poses[:, : position + 1], given=len(given))
        trained = pipeline.unet.forward_sets(noisy, timestep.expand(1, position + 1), sets)
        torch.testing.assert_close(prediction, trained[:, position], rtol=1e-3, atol=1e-4)


@VARIANTS
@pytest.mark.slow
def test_only_where_cameras_stand_to_each_other_counts(make_pipeline: MakePipeline, variant: Variant) -> None:
    pipeline, given = make_pipeline(variant), photos(2)
    drawn = latents(pipeline, given, 3, poses=CAMERAS)
    torch.testing.assert_close(latents(pipeline, given, 3, poses=turned(CAMERAS, 77)), drawn, rtol=1e-3, atol=1e-4)
    larger = np.concatenate([CAMERAS[..., :3], 100 * CAMERAS[..., 3:]], axis=-1)
    torch.testing.assert_close(latents(pipeline, given, 3, poses=larger), drawn, rtol=1e-3, atol=1e-4)
    moved = CAMERAS.copy()
    moved[3] = Camera(120, 0, 3.0).matrix()
    other = latents(pipeline, given, 3, poses=moved)
    assert torch.equal(other[0], drawn[0])
    assert not torch.allclose(other[1], drawn[1], atol=1e-3)
    assert not torch.allclose(other[2], drawn[2], atol=1e-4), "it looks at the one before it"


@VARIANTS
def test_images_that_are_not_read_take_their_poses_with_them(make_pipeline: MakePipeline, variant: Variant) -> None:
    pipeline, given = make_pipeline(variant, max_context=3), photos(4)
    cameras = np.concatenate([CAMERAS, CAMERAS[:1]])
    drawn, expected = latents(pipeline, given, 2, poses=cameras), latents(pipeline, given[1:], 2, poses=cameras[1:])
    assert torch.equal(drawn, expected)


def test_a_batch_of_sets_is_each_set_alone(make_pipeline: MakePipeline) -> None:
    pipeline, sets = make_pipeline("self"), [photos(2), photos(1), photos(3)[:2]]
    cameras = [CAMERAS[:4], CAMERAS[1:4], CAMERAS[::-1][:4]]
    together = latents(pipeline, sets, 2, generator=[1, 2, 3], poses=cameras)
    for index, (images, own) in enumerate(zip(sets, cameras, strict=True)):
        alone = latents(pipeline, images, 2, generator=index + 1, poses=torch.from_numpy(own.copy()))
        torch.testing.assert_close(together[index], alone, rtol=1e-3, atol=1e-4)


def test_it_comes_back_from_a_folder(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    pipeline = make_pipeline("dino")
    pipeline.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(*(latents(each, photos(1), 1, poses=CAMERAS[:2]) for each in (pipeline, loaded)))


@pytest.mark.parametrize(
    ("poses", "words"),
    [
        (None, "this model draws views: it needs poses"),
        (CAMERAS[:4], r"\[\(5, 3, 4\)\], not \[\(4, 3, 4\)\]"),
        (CAMERAS[..., :3], r"\[\(5, 3, 4\)\], not \[\(5, 3, 3\)\]"),
        (CAMERAS[None], r"\[\(5, 3, 4\)\], not \[\(1, 5, 3, 4\)\]"),
        (np.where(CAMERAS > 2.9, np.nan, CAMERAS), "not finite"),
        (CAMERAS * [1, 1, 1, 0], "stands in the world's origin"),
    ],
)
def test_poses_that_cannot_be_are_an_error(make_pipeline: MakePipeline, poses: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        latents(make_pipeline("self"), photos(2), 3, poses=poses)


def test_as_many_cameras_as_sets_are_wanted(make_pipeline: MakePipeline) -> None:
    with pytest.raises(ValueError, match="poses of the given and the wanted images"):
        latents(make_pipeline("self"), [photos(2), photos(2)], 3, poses=[CAMERAS])


def test_poses_that_nobody_wants_are_an_error(make_pipeline: MakePipeline) -> None:
    with pytest.raises(ValueError, match="this model knows no poses"):
        latents(make_pipeline("self", poses=False), photos(2), 3, poses=CAMERAS)
