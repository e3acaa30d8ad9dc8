"""Many images in, many images out: the diffusers pipeline that draws image after image (paper, section 3)."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from safetensors import SafetensorError
from torch import Tensor
from transformers import BaseImageProcessor, Dinov2Model

from m2m import seeds
from m2m.diffusion.objective import add_context_noise, alphas_cumprod
from m2m.errors import UserError
from m2m.models.dino import dino_pixels, dino_tokens
from m2m.models.image_set_attention import ContextCache, Window
from m2m.models.unet import ImageSetUNet
from m2m.photos import Photo, as_tensor, square

Seed: TypeAlias = int | torch.Generator
StepCallback: TypeAlias = Callable[["M2MPipeline", int, Tensor, dict[str, Any]], dict[str, Any]]
OutputType = Literal["pil", "np", "pt", "latent"]


@dataclass(frozen=True)
class Options:
    """What holds for every image of one call of the pipeline."""

    num_images: int
    num_inference_steps: int
    guidance_scale: float
    context_timestep: int
    output_type: OutputType
    use_cache: bool
    callback: StepCallback | None
    advance: Callable[[], object]  # moves the progress bar on by a step


class Context:
    """The images of S sets that the next one follows, as the U-Net takes them in."""

    def __init__(self, unet: ImageSetUNet, *, sets: int, timestep: int, device: torch.device, use_cache: bool) -> None:
        self.unet = unet
        self.timestep = timestep  # the noise level of all of them
        self.timesteps = torch.full((sets,), timestep, device=device)
        self.images = 0
        self._cache = self._empty()
        self._samples: list[Tensor] | None = None if use_cache else []

    def append(self, sample: Tensor) -> None:
        """Adds one image a set: latents (S, 4, h, w) for M2M-Self, patch tokens (S, L, D) for M2M-DINO."""
        self.images += 1
        if self._samples is None:
            self._record(sample, self._cache)
        else:
            self._samples.append(sample)

    def window(self, *, guided: bool) -> Window:
        """What the next image reads in one step; `guided`: the batch's first half sees nothing."""
        cache = self._cache
        if self._samples is not None:
            cache = self._empty()
            for sample in self._samples:
                self._record(sample, cache)
        return Window(cache, unconditional=len(self.timesteps) if guided else 0)

    def _empty(self) -> ContextCache:
        return ContextCache(self.unet.config.max_context)

    def _record(self, sample: Tensor, cache: ContextCache) -> None:
        self.unet(sample, self.timesteps, Window(cache, record=True))


class M2MPipeline(DiffusionPipeline):
    """Draws any number of images that go with any number of given ones.

    Args:
        vae: Stable Diffusion's autoencoder.
        unet: the M2M network.
        scheduler: any diffusers scheduler.
        image_encoder: DINOv2, for M2M-DINO.
        feature_extractor: DINOv2's image processor, for M2M-DINO.
    """

    model_cpu_offload_seq = "image_encoder->unet->vae"
    _optional_components = ["image_encoder", "feature_extractor"]

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: ImageSetUNet,
        scheduler: SchedulerMixin,
        image_encoder: Dinov2Model | None = None,
        feature_extractor: BaseImageProcessor | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae, unet=unet, scheduler=scheduler, image_encoder=image_encoder, feature_extractor=feature_extractor
        )
        self.vae_scale_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @property
    def image_size(self) -> int:
        """Width and height, in pixels, of the images that are drawn."""
        return int(self.unet.config.sample_size * self.vae_scale_factor)

    @torch.no_grad()
    def __call__(
        self,
        images: Sequence[Photo] | Sequence[Sequence[Photo]],
        num_images: int = 1,
        *,
        num_inference_steps: int = 50,
        guidance_scale: float = 3.0,
        context_timestep: int = 0,
        generator: Seed | Sequence[Seed] | None = None,
        latents: Tensor | None = None,
        output_type: OutputType = "pil",
        use_cache: bool = True,
        callback_on_step_end: StepCallback | None = None,
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draws `num_images` images for each set of given ones, each after seeing those before it.

        Args:
            images: one set of given images, or a list of such sets (of any sizes); see `m2m.photos.square` for what an image may be.
                An empty set is drawn from nothing.
            guidance_scale: classifier-free guidance u + s·(c - u) of the empty context u and the given one c; at 1 there is none.
            context_timestep: how much noise context images are given, on the scheduler's training timesteps; 0: none.
            generator: a seed, or a generator whose *initial* seed is taken; one for all or a list of one a set. Image k of a set depends on
                its seed and k, not on `num_images`, nor (but for rounding) on what else the batch holds.
            latents: the initial noise, (num_images, 4, h, w), or (sets, num_images, 4, h, w) for a list of sets.
            output_type: "pil", "np" (n, H, W, 3) or "pt" (n, 3, H, W) from 0 to 1, or "latent" (n, 4, h, w), scaled.
            use_cache: compute keys and values of context images once. Without, they are computed anew in each step: the same to rounding.
            callback_on_step_end: called as f(pipeline, step, timestep, {"latents": (S, 4, h, w), "image": k}) after each step of image k
                of S sets; what it returns may hold other "latents" to go on from.

        Returns:
            The drawn images only, `.images`: those of one set, or for a list of sets a list of lists ("np", "pt", "latent": one array).

        Raises:
            ValueError: fewer than one image or step is wanted, or an argument is of the wrong shape.
        """
        nested = any(isinstance(item, (list, tuple)) or getattr(item, "ndim", 3) == 4 for item in images)
        sets = cast(list[Sequence[Photo]], list(images) if nested else [images])
        seeds_of_sets = _seeds_of_sets(generator, len(sets), nested)
        if num_images < 1 or num_inference_steps < 1:
            raise ValueError(f"num_images and num_inference_steps are at least 1, not {num_images} and {num_inference_steps}")
        if latents is not None:
            latents = latents if nested else latents[None]
            wanted = (len(sets), num_images, self.unet.config.in_channels, *[self.unet.config.sample_size] * 2)
            if latents.shape != wanted:
                raise ValueError(f"the latents' shape is {wanted if nested else wanted[1:]}, not {tuple(latents.shape)}")

        groups = [[s for s, given in enumerate(sets) if len(given) == n] for n in sorted({len(given) for given in sets})]
        drawn: list[list[Tensor]] = [[] for _ in sets]
        with self.progress_bar(total=len(groups) * num_images * len(self._timesteps(num_inference_steps))) as bar:
            options = Options(
                num_images=num_images,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                context_timestep=context_timestep,
                output_type=output_type,
                use_cache=use_cache,
                callback=callback_on_step_end,
                advance=bar.update,
            )
            for group in groups:
                given = [[as_tensor(square(photo, self.image_size)) for photo in sets[s]] for s in group]
                noise = None if latents is None else latents[group]
                for images_of_sets in self._draw(given, [seeds_of_sets[s] for s in group], noise, options):
                    for s, image in zip(group, images_of_sets, strict=True):
                        drawn[s].append(image)
        self.maybe_free_model_hooks()

        results = [self.image_processor.postprocess(torch.stack(images_of_set), output_type) for images_of_set in drawn]
        output: Any = results if nested else results[0]
        if nested and output_type != "pil":
            output = np.stack(results) if output_type == "np" else torch.stack(results)
        return ImagePipelineOutput(images=output) if return_dict else (output,)

    def _draw(self, given: list[list[Tensor]], set_seeds: list[int], noise: Tensor | None, options: Options) -> Iterator[Tensor]:
        """Draws for S sets with equally many given images; yields each new image of all of them, (S, 3, H, W) or latents (S, 4, h, w)."""
        device, shape = self._execution_device, (self.unet.config.in_channels, *[self.unet.config.sample_size] * 2)
        context = Context(self.unet, sets=len(given), timestep=options.context_timestep, device=device, use_cache=options.use_cache)
        dino = self.unet.config.variant == "dino"

        for pictures in zip(*given, strict=True):
            images = torch.stack(pictures).to(device)  # uint8 (S, 3, H, W)
            context.append(self._context_sample(images if dino else self._encode(images), context, set_seeds))
        for k in range(options.num_images):
            generators = [seeds.generator(seed, "image", k) for seed in set_seeds]
            start = torch.stack([torch.randn(shape, generator=g) for g in generators]) if noise is None else noise[:, k]
            latents = self._denoise(start.to(device, self.unet.dtype), context, generators, k, options)  # (S, 4, h, w)
            last = k + 1 == options.num_images
            if options.output_type != "latent" or (dino and not last):
                image = self.vae.decode(latents / self.vae.config.scaling_factor).sample  # (S, 3, H, W), -1 to 1
            yield latents if options.output_type == "latent" else image
            if not last:
                context.append(self._context_sample(_as_uint8(image) if dino else latents, context, set_seeds))

    def _denoise(
        self, latents: Tensor, context: Context, generators: list[torch.Generator], k: int, options: Options
    ) -> Tensor:
        """From unit noise to the scaled latents of image k of every set: (S, 4, h, w) -> (S, 4, h, w)."""
        timesteps = self._timesteps(options.num_inference_steps)  # on the CPU, where schedulers look steps up without waiting for the device
        times = timesteps.to(latents.device)
        stochastic = "generator" in inspect.signature(self.scheduler.step).parameters
        noise_of_steps = {"generator": generators} if stochastic else {}
        guided = options.guidance_scale != 1 and context.images > 0
        latents = latents * self.scheduler.init_noise_sigma
        for step, timestep in enumerate(timesteps):
            sample = self.scheduler.scale_model_input(latents, timestep)  # (S, 4, h, w)
            sample = torch.cat([sample, sample]) if guided else sample  # (S or 2·S, 4, h, w): without and with context
            prediction = self.unet(sample, times[step], context.window(guided=guided), return_dict=False)[0]
            if guided:
                empty, given = prediction.chunk(2)
                prediction = empty + options.guidance_scale * (given - empty)  # (S, 4, h, w)
            latents = self.scheduler.step(prediction, timestep, latents, **noise_of_steps).prev_sample
            if options.callback is not None:
                latents = options.callback(self, step, timestep, {"latents": latents, "image": k}).get("latents", latents)
            options.advance()
        return latents

    def _timesteps(self, num_inference_steps: int) -> Tensor:
        """Resets the scheduler, which may carry predictions of earlier steps, and gives the timesteps of an image."""
        self.scheduler.set_timesteps(num_inference_steps)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(0)  # else it searches the timesteps, which waits for the device
        return cast(Tensor, self.scheduler.timesteps)

    def _encode(self, images: Tensor) -> Tensor:
        """Scaled latents of pictures: uint8 (S, 3, H, W) -> (S, 4, h, w)."""
        posterior = self.vae.encode((images / 127.5 - 1).to(self.vae.dtype)).latent_dist
        return cast(Tensor, posterior.mode() * self.vae.config.scaling_factor)

    def _context_sample(self, images: Tensor, context: Context, set_seeds: list[int]) -> Tensor:
        """What the U-Net reads of one image a set, with the noise due to its place: latents, or uint8 pictures -> patch tokens."""
        if dino := images.dtype == torch.uint8:
            images = dino_pixels(images, self.feature_extractor)  # (S, 3, side, side)
        if context.timestep > 0:
            products = alphas_cumprod(self.scheduler.config, self.scheduler.config.prediction_type)
            generators = [seeds.generator(seed, "context", context.images) for seed in set_seeds]
            noise = torch.stack([torch.randn(images.shape[1:], generator=g) for g in generators]).to(images)
            images = add_context_noise(images, noise, context.timesteps, products)
        return dino_tokens(self.image_encoder, images).to(self.unet.dtype) if dino else images


def load_pipeline(folder: Path, *, device: str = "cpu") -> M2MPipeline:
    """An M2M model folder, ready to draw. Reads safetensors only and asks no network.

    Raises:
        UserError: there is no such folder, it is another kind of model, or part of it is missing or damaged.
    """
    index = folder / "model_index.json"
    try:
        kind = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except FileNotFoundError as error:
        raise UserError(f"{folder}: not a model folder (no model_index.json); give one that training made") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index}: damaged; restore the model folder (dvc checkout {folder})") from error
    if kind != M2MPipeline.__name__:
        raise UserError(f"{folder}: holds a {kind}, not an M2M model; give a folder that training made, such as models/m2m-self")
    try:
        pipeline = M2MPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{folder}: incomplete or damaged ({reason}); restore the model folder (dvc checkout {folder})") from error
    return cast(M2MPipeline, pipeline.to(device))


def _seeds_of_sets(generator: Seed | Sequence[Seed] | None, sets: int, nested: bool) -> list[int]:
    if generator is None:
        generator = int(torch.randint(2**62, ()))  # so that torch.manual_seed decides, as elsewhere
    if isinstance(generator, Sequence):
        if len(generator) != sets:
            raise ValueError(f"{len(generator)} generators for {sets} sets: give one, or one a set")
        return [_seed(one) for one in generator]
    return [seeds.derive(_seed(generator), "set", s) for s in range(sets)] if nested else [_seed(generator)]


def _seed(generator: Seed) -> int:
    return generator if isinstance(generator, int) else generator.initial_seed()


def _as_uint8(images: Tensor) -> Tensor:
    """Pictures as they would be saved: -1 to 1 -> uint8."""
    return ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
