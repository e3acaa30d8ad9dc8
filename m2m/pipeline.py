"""Many images in, many images out: the diffusers pipeline that draws image after image (paper, section 3)."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import diffusers
import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from safetensors import SafetensorError
from torch import Tensor
from transformers import BaseImageProcessor, CLIPVisionModel, Dinov2Model

from m2m import seeds
from m2m.calls import Cameras, ConcurrentPipeline, Seed, pixels_of, poses_of_sets, seeds_of_sets, sets_of
from m2m.devices import align
from m2m.diffusion.gaussian import add_context_noise, alphas_cumprod
from m2m.diffusion.sampler import denoise
from m2m.diffusion.stable_diffusion import decode, encode
from m2m.errors import UserError
from m2m.files import DIGESTS, check_digests
from m2m.models.context import PrecedingImages, dino_pixels, dino_tokens
from m2m.models.pose import Viewpoints
from m2m.models.unet import ImageSetUNet
from m2m.params import Precision
from m2m.photos import Photo, as_levels

StepCallback: TypeAlias = Callable[["M2MPipeline", int, Tensor, dict[str, Any]], dict[str, Any]]
OutputType = Literal["pil", "np", "pt", "latent"]
_log = logging.getLogger(__name__)


class M2MPipeline(ConcurrentPipeline):
    """Draws any number of images that go with any number of given ones.

    It may be called in several threads at once, see `ConcurrentPipeline`. A call that is interrupted returns the images
    drawn until then, the last one as it is.

    Args:
        vae: Stable Diffusion's autoencoder.
        unet: the M2M network.
        scheduler: any diffusers scheduler that walks along the noise schedule of the training.
        image_encoder: DINOv2 or another vision transformer, for M2M-DINO.
        feature_extractor: its image processor.
    """

    model_cpu_offload_seq = "image_encoder->unet->vae"  # type: ignore[assignment]
    _optional_components = ["image_encoder", "feature_extractor"]  # noqa: RUF012  (as the parent class has it)
    _callback_tensor_inputs = ["latents", "prompt_embeds"]  # noqa: RUF012

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: ImageSetUNet,
        scheduler: SchedulerMixin,
        image_encoder: Dinov2Model | CLIPVisionModel | None = None,
        feature_extractor: BaseImageProcessor | None = None,
    ) -> None:
        super().__init__()
        align(vae, unet, image_encoder)
        encoder = {"image_encoder": image_encoder, "feature_extractor": feature_extractor}
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler, **encoder)  # type: ignore[no-untyped-call]
        self.vae_scale_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], **options: Any) -> M2MPipeline:
        """As every diffusers pipeline; a folder that training made is first compared with its ``digests.json``.

        Raises:
            UserError: a file of it is missing or damaged.
        """
        check_digests(Path(pretrained_model_name_or_path))
        return super().from_pretrained(pretrained_model_name_or_path, **options)

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **options: Any) -> None:
        """As every diffusers pipeline; digests of what lay there before are removed."""
        (Path(save_directory) / DIGESTS).unlink(missing_ok=True)
        super().save_pretrained(save_directory, *args, **options)

    @property
    def image_size(self) -> int:
        """Width and height, in pixels, of the images that are drawn."""
        return int(self.unet.config.sample_size * self.vae_scale_factor)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Of one image: channels, height, width."""
        return self.unet.config.in_channels, self.unet.config.sample_size, self.unet.config.sample_size

    @torch.no_grad()
    def __call__(
        self,
        images: Sequence[Photo] | Sequence[Sequence[Photo]],
        num_images: int = 1,
        *,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.25,
        context_timestep: int = 0,
        drawn_context: int | None = None,
        generator: Seed | Sequence[Seed] | None = None,
        latents: Tensor | None = None,
        poses: Cameras | Sequence[Cameras] | None = None,
        output_type: OutputType = "pil",
        use_cache: bool = True,
        use_cuda_graphs: bool = True,
        callback_on_step_end: StepCallback | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> Any:
        """Draws `num_images` images for each set of given ones, each after seeing those before it.

        Args:
            images: one set of given images, or a list of such sets, of any sizes; `m2m.photos.square` says what an
                image may be. After an empty set, images are drawn from nothing. Of more than the window holds, the
                newest are read, and a warning is logged; all that are read stay in it, whatever is drawn.
            guidance_scale: classifier-free guidance, u + s·(c - u) of predictions without context u and with it c; as
                in diffusers, at 1 and below there is none: c alone. Much of it keeps more of the given images than they
                share. To draw without context, give no images.
            context_timestep: the noise that context images are given, as a training timestep; 0: none.
            drawn_context: how many drawn images later ones read at most, the first of them; None: the newest that fit
                the window. With 0 each reads the given ones alone; with 1 all later ones the first as well, so that
                they agree without being copies of copies. What is not read costs nothing.
            generator: a seed, or a generator whose initial seed is taken; one for all, or a list of one a set. Image k
                of a set depends on its seed and k, not on `num_images`, nor on torch's defaults, nor (but for rounding)
                on the rest of the batch.
            latents: the initial noise: (num_images, 4, h, w), for a list of sets (sets, num_images, 4, h, w).
            poses: for a model of views, world-to-camera matrices (n, 3, 4) of the given images and of those to draw, in
                this order; for a list of sets (sets, n, 3, 4). `m2m.world.cameras` states the convention.
            output_type: "pil"; "np" (n, H, W, 3) or "pt" (n, 3, H, W), from 0 to 1; "latent" (n, 4, h, w), scaled.
            use_cache: compute keys and values of context images once; else anew in each step, the same to rounding.
            use_cuda_graphs: on a GPU, launch a step of an image as one CUDA graph from its second step on, the same to
                the bit; turn it off for a network that is compiled with graphs of its own.
            callback_on_step_end: called as f(pipeline, step, timestep, {"latents": (S, 4, h, w), "image": k}) after
                each step of image k of S sets; it may return {"latents": …} to go on from. Its pipeline is the call's
                own, with `scheduler`, `num_timesteps` and `guidance_scale`.
            callback_on_step_end_tensor_inputs: what it is told. There is no prompt; ``prompt_embeds`` is empty, for
                diffusers' `SDCFGCutoffCallback`, which ends guidance in the midst of each image.

        Returns:
            `ImagePipelineOutput` (or a tuple) with `.images`, the drawn ones only: a list, for a list of sets a list of
            lists; one array where not "pil" (interrupted where sets have different numbers of them: a list of arrays).

        Raises:
            ValueError: nothing is wanted, or an argument has a wrong shape or is none of what it may be.
            UserError: the scheduler is of another family than the training's.
        """
        sets, nested = sets_of(images)
        set_seeds = seeds_of_sets(generator, len(sets), nested)
        if num_images < 1 or num_inference_steps < 1:
            raise ValueError(f"at least 1 image and 1 step, not {num_images} and {num_inference_steps}")
        if drawn_context is not None and drawn_context < 0:
            raise ValueError(f"drawn_context is a number of drawn images, or None, not {drawn_context}")
        if not math.isfinite(guidance_scale):
            raise ValueError(f"guidance_scale is a finite number, not {guidance_scale}")
        if output_type not in get_args(OutputType):
            raise ValueError(f"output_type is one of {', '.join(get_args(OutputType))}, not {output_type!r}")
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            known = " and ".join(self._callback_tensor_inputs)
            raise ValueError(f"a callback may ask for {known} of this pipeline, not for {', '.join(sorted(unknown))}")
        if latents is not None:
            if not isinstance(latents, Tensor):
                raise ValueError(f"latents are a tensor, not of type {type(latents).__name__}")
            latents = latents if nested else latents[None]
            if latents.shape != (wanted := (len(sets), num_images, *self.latent_shape)):
                raise ValueError(f"latents for {len(sets)} sets are {wanted}, not {tuple(latents.shape)}")
        counts, window = [len(of_set) for of_set in sets], self.unet.max_context
        cameras = poses_of_sets(poses, counts, num_images, nested, window=window, wanted=self.unet.pose_dim > 0)
        if (most := max(counts)) > window:
            _log.warning(
                "%d images are given, the model's window holds %d: it reads the last %d of them, not the first %d",
                *(most, window, window, most - window),
            )
        given = pixels_of([of_set[-window:] for of_set in sets], self.image_size)

        groups = [[s for s, of_set in enumerate(given) if len(of_set) == n] for n in sorted({*map(len, given)})]
        drawn: list[list[Tensor]] = [[] for _ in sets]
        with ExitStack() as stack:
            call, in_place = stack.enter_context(self._alone(num_inference_steps, guidance_scale))
            bar = stack.enter_context(self.progress_bar(total=len(groups) * num_images * call.num_timesteps))

            def after_step(k: int, step: int, timestep: Tensor, latents: Tensor) -> Tensor:
                if callback_on_step_end is not None:
                    tensors = {"latents": latents, "prompt_embeds": latents.new_empty(0)}
                    wanted = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    state = callback_on_step_end(call, step, timestep, {**wanted, "image": k})
                    latents = (state or {}).get("latents", latents)
                bar.update()
                return latents

            draw = partial(
                call._draw,
                num_images=num_images,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                context_timestep=context_timestep,
                drawn_context=drawn_context,
                decoded=output_type != "latent",
                use_cache=use_cache,
                use_cuda_graphs=use_cuda_graphs and in_place,
                after_step=after_step,
            )
            for group in groups:
                noise = None if latents is None else latents[group]
                seen_from = None if cameras is None else torch.stack([cameras[s] for s in group])
                of_group = [given[s] for s in group]
                for images_of_sets in draw(of_group, [set_seeds[s] for s in group], noise, seen_from):
                    for s, image in zip(group, images_of_sets, strict=True):
                        drawn[s].append(image)
            self.maybe_free_model_hooks()  # type: ignore[no-untyped-call]

        results = [self._output(of_set, output_type) for of_set in drawn]
        output: Any = results if nested else results[0]
        if nested and output_type != "pil" and len({len(of_set) for of_set in drawn}) == 1:
            output = np.stack(results) if output_type == "np" else torch.stack(results)
        return ImagePipelineOutput(images=output) if return_dict else (output,)

    def _output(self, images: Sequence[Tensor], output_type: OutputType) -> Any:
        """The images of a set as they are wanted; of an interrupted call there may be none."""
        shape = self.latent_shape if output_type == "latent" else (3, self.image_size, self.image_size)
        stacked = torch.stack(list(images)) if images else torch.empty(0, *shape, device="cpu")
        return self.image_processor.postprocess(stacked, output_type)

    def _draw(
        self,
        given: list[list[Tensor]],
        set_seeds: list[int],
        noise: Tensor | None,
        poses: Tensor | None,
        *,
        num_images: int,
        num_inference_steps: int,
        guidance_scale: float,
        context_timestep: int,
        drawn_context: int | None,
        decoded: bool,
        use_cache: bool,
        use_cuda_graphs: bool,
        after_step: Callable[[int, int, Tensor, Tensor], Tensor],
    ) -> Iterator[Tensor]:
        """Draws for S sets with equally many given images; yields image after image of all of them.

        These are (S, 3, H, W) from -1 to 1, or (not `decoded`) latents (S, 4, h, w).
        """
        device, dino = self._execution_device, self.unet.variant == "dino"
        preceding = PrecedingImages(
            self.unet,
            sets=len(given),
            timestep=context_timestep,
            device=device,
            use_cache=use_cache,
            given=len(given[0]),
            drawn_context=drawn_context,
        )
        moved = None if poses is None else poses.to(device)  # (S, n, pose_dim), float32

        def seen_from() -> Viewpoints | None:
            return None if moved is None else Viewpoints(moved[:, preceding.count], self.unet.dtype)

        def remember(images: Tensor) -> None:
            preceding.append(self._context(images, preceding, set_seeds, context_timestep), seen_from())

        for pictures in zip(*given, strict=True):
            images = torch.stack(pictures).to(device)  # uint8 (S, 3, H, W)
            remember(images if dino else encode(self.vae, images))
        for k in range(num_images):
            if self.interrupt:
                return
            self._guidance_scale = guidance_scale  # a callback may have changed it for the image before
            generators = [seeds.generator(seed, "image", k) for seed in set_seeds]
            start = seeds.normal(self.latent_shape, *generators) if noise is None else noise[:, k]  # (S, 4, h, w)
            latents = denoise(
                start.to(device, self.unet.dtype),
                partial(self._predict, preceding, seen_from()),
                self.scheduler,
                num_inference_steps,
                scale=lambda: 1.0 if preceding.none_is_read else self._guidance_scale,
                generators=generators,
                use_cuda_graphs=use_cuda_graphs,
                stopped=lambda: self.interrupt,
                after_step=partial(after_step, k),
            )
            is_read = preceding.next_is_read and k + 1 < num_images
            if decoded or (dino and is_read):
                images = decode(self.vae, latents)  # (S, 3, H, W)
            yield images if decoded else latents
            if is_read and not self.interrupt:
                remember(as_levels(images) if dino else latents)
            else:
                preceding.skip()

    def _predict(
        self, preceding: PrecedingImages, seen_from: Viewpoints | None, rows: Tensor, time: Tensor, guided: bool
    ) -> Tensor:
        """What the network says of noisy latents (rows, 4, h, w), the first half without context where guided."""
        window = preceding.window(guided=guided, seen_from=seen_from)
        return cast(Tensor, self.unet(rows.to(self.unet.dtype), time, window, return_dict=False)[0])

    def _context(
        self, images: Tensor, preceding: PrecedingImages, set_seeds: list[int], context_timestep: int
    ) -> Tensor:
        """What the U-Net reads of the next context image, noised: latents, or the patch tokens of uint8 pictures."""
        dino = images.dtype == torch.uint8
        if dino:
            images = dino_pixels(images, self.feature_extractor)  # (S, 3, h, w)
        if context_timestep > 0:
            products = alphas_cumprod(self.scheduler.config, self.scheduler.config.prediction_type)
            generators = [seeds.generator(seed, "context", preceding.count) for seed in set_seeds]
            noise = seeds.normal(images.shape[1:], *generators).to(images)
            images = add_context_noise(images, noise, preceding.timesteps, products)
        return (dino_tokens(self.image_encoder, images) if dino else images).to(self.unet.dtype)


def load_pipeline(folder: Path, *, device: str = "cpu", precision: Precision = "float32") -> M2MPipeline:
    """An M2M model folder, ready to draw. It reads safetensors only and asks no network.

    Raises:
        UserError: there is no such folder, it holds another kind of model, or part of it is missing or damaged.
    """
    remedy = "give a folder that training made, or restore it with dvc checkout"
    try:
        kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{folder}: not a model folder, model_index.json is missing or damaged; {remedy}") from error
    if kind != M2MPipeline.__name__:
        raise UserError(f"{folder}: holds a {kind}, not an M2M model; {remedy}")
    try:
        pipeline = M2MPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{folder}: incomplete or damaged ({reason}); {remedy}") from error
    return pipeline.to(device, getattr(torch, precision))


# DiffusionPipeline.from_pretrained looks there for the class that a model folder names.
diffusers.M2MPipeline = M2MPipeline  # type: ignore[attr-defined]
