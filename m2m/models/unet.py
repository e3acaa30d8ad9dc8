"""Stable Diffusion's U-Net that looks at the preceding images of a set instead of a text (paper, section 3).

The network is diffusers' own; only the cross-attention of each transformer block is exchanged for Image-Set Attention,
and the weights come from a Stable Diffusion folder. The variants differ in who reads the context images: the U-Net
itself ("self"), at every one of its resolutions, or DINOv2 ("dino"), whose patch tokens take the place of the text's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  (diffusers looks for it here to load a pipeline)
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel, UNet2DConditionOutput
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from m2m.devices import align, sent
from m2m.models.context import Window
from m2m.models.image_set_attention import ImageSetAttention
from m2m.models.packing import TeacherForcing
from m2m.models.pose import Viewpoints
from m2m.params import Variant
from m2m.seeds import generator, normal

GRAPHS = 64
"""That compiled blocks of a kind may have. Stable Diffusion's ResNet blocks have 14 shapes, and torch gives up at 8."""
UNSUPPORTED = ("addition_embed_type", "encoder_hid_dim_type", "only_cross_attention", "dual_cross_attention")


@dataclass(frozen=True, eq=False)
class ContextImages:
    """What the images of B sets of N may read in training. The last of a set is read by none and may be left out.

    Sets may differ in length: N is that of the longest; what stands after the end of a shorter one is not looked at.
    """

    images: (
        Tensor  # self: latents (B, N or N-1, 4, h, w), with noise or without; dino: patch tokens (B, …, L, context_dim)
    )
    timesteps: Tensor  # (B, N or N-1): the noise on each; 0: none
    dropped: Tensor | None = None  # (B, N) bool: images drawn without context, for guidance
    lengths: tuple[int, ...] | None = None  # images of each set, 2 at least; None: all have N
    poses: Tensor | None = None  # (B, N, pose_dim), of all images
    predict_first: bool = True  # False: the first image of each set is context alone
    given: int = 1  # the first images of each set that stay in the window where it slides


def _with_the_arguments_of_the_parent(init: Callable[..., None]) -> Callable[..., None]:
    """Shows the parent's arguments in place of `**unet`: diffusers takes a configuration's keys from the signature."""
    own = [p for p in inspect.signature(init).parameters.values() if p.kind is not p.VAR_KEYWORD]
    parent = list(inspect.signature(UNet2DConditionModel.__init__).parameters.values())[1:]
    arguments = [*own, *(p.replace(kind=p.KEYWORD_ONLY) for p in parent)]
    init.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
    return init


class ImageSetUNet(UNet2DConditionModel):
    """Predicts the noise (or velocity) of an image from its noisy latents and the images before it.

    Args:
        variant: who reads the context images, the U-Net itself or DINOv2.
        max_context: images of the window that an image reads: the given ones and the newest others.
        null_tokens: rows of keys and values that are the empty set, as many as the empty prompt has tokens.
        context_dim: width of DINOv2's patch tokens; 0 for "self".
        context_pool: for "self", how many neighbouring tokens of a context image are read as one at the finest level,
            where most of the operations are; a divisor of the latents' width.
        unet: the configuration of `UNet2DConditionModel`.
    """

    _repeated_blocks = ["Transformer2DModel", "ResnetBlock2D"]  # noqa: RUF012  (as the parent class has it)

    @register_to_config  # type: ignore[untyped-decorator]
    @_with_the_arguments_of_the_parent
    def __init__(
        self,
        *,
        variant: Variant,
        max_context: int,
        null_tokens: int,
        context_dim: int = 0,
        context_pool: int = 1,
        **unet: Any,
    ) -> None:
        super().__init__(**unet)
        if refused := [option for option in UNSUPPORTED if unet.get(option)]:
            said = "Image-Set Attention replaces plain text cross-attention"
            raise ValueError(f"{said}; {', '.join(refused)} must be off")
        if context_pool > 1 and variant == "dino":
            raise ValueError("context_pool coarsens what M2M-Self reads; M2M-DINO reads patch tokens, it must be 1")
        self.variant: Variant = variant
        self.max_context = max_context
        parts = [part for part in (self.down_blocks, self.mid_block, self.up_blocks) if part is not None]
        blocks = [module for part in parts for module in part.modules() if isinstance(module, BasicTransformerBlock)]
        for block in blocks:
            text: Any = block.attn2
            block.attn2 = ImageSetAttention(  # type: ignore[assignment]
                dim=text.query_dim,
                inner_dim=text.inner_dim,
                heads=text.heads,
                token_dim=text.query_dim if variant == "self" else text.cross_attention_dim,
                max_context=max_context,
                null_tokens=null_tokens,
                value_bias=variant == "self",
                with_rays=self.pose_dim > 0,
                pool=context_pool if text.query_dim == self.config["block_out_channels"][0] else 1,
                last=variant == "self" and block is blocks[-1],
                dropout=text.dropout,
            )
        if variant == "dino":
            width, sinusoids = self.config["cross_attention_dim"], self.time_embedding.linear_1.in_features
            self.context_proj = nn.Linear(context_dim, width)
            self.context_level = nn.Linear(sinusoids, width, bias=False)
            if self.pose_dim:
                self.context_pose = TimestepEmbedding(self.pose_dim, width)

    @property
    def pose_dim(self) -> int:
        """Numbers that say from where an image is seen, through the U-Net's class embedding; 0: it takes none."""
        return self.config["projection_class_embeddings_input_dim"] or 0

    @classmethod
    def from_stable_diffusion(cls, folder: Path, *, variant: Variant, **own: int) -> Self:
        """The start of training from a `StableDiffusionPipeline` folder: a pure function of the folder.

        For the empty set it predicts what the Stable Diffusion U-Net predicts for the empty prompt. After images not
        quite, as they take a share of each attention: on the embedded world's foundation the difference is 32 % to 37 %
        of the prediction (root mean squares) for "self", and 16 % after one image to 27 % after five for "dino". For
        "self" constants that are fitted to what the parent reads come no nearer.

        Args:
            own: `max_context`, `context_dim`, `context_pool`, as of the class.
        """
        parent = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", use_safetensors=True)
        align(parent)
        return cls.from_parent(parent, empty_prompt=empty_prompt(folder), variant=variant, **own)

    @classmethod
    def from_parent(cls, parent: UNet2DConditionModel, *, empty_prompt: Tensor, variant: Variant, **own: int) -> Self:
        """Carries the weights of a Stable Diffusion U-Net over; `empty_prompt` (L0, cross_attention_dim) is its text.

        "dino" keeps all of them, and its tokens start at the empty prompt's mean. "self" needs new keys and values:
        keys start as the queries' twins, so that like looks at like, and values at the mean of the empty prompt's.
        """
        unet = cls._without_weights(parent, variant=variant, null_tokens=len(empty_prompt), **own)
        weights = dict(parent.state_dict())
        for name, attention in unet.attentions().items():
            weights[f"{name}.slot_embedding"] = torch.zeros_like(attention.slot_embedding)
            weights[f"{name}.null_keys"] = empty_prompt @ weights[f"{name}.to_k.weight"].T
            weights[f"{name}.null_values"] = empty_prompt @ weights[f"{name}.to_v.weight"].T
            if variant == "self":
                weights[f"{name}.to_k.weight"] = weights[f"{name}.to_q.weight"]
                weights[f"{name}.to_v.bias"] = weights[f"{name}.null_values"].mean(dim=0)
                weights[f"{name}.to_v.weight"] = torch.zeros_like(attention.to_v.weight)
        if variant == "dino":
            weights["context_proj.weight"] = torch.zeros_like(unet.context_proj.weight)
            weights["context_proj.bias"] = empty_prompt.mean(dim=0)
            weights["context_level.weight"] = torch.zeros_like(unet.context_level.weight)
        unet.load_state_dict(weights)
        return unet

    @classmethod
    def with_poses(cls, parent: ImageSetUNet, *, pose_dim: int, seed: int) -> Self:
        """The parent, and a way for poses to come in: at first it predicts what the parent predicts, whatever the pose.

        Only the last layers start at zero, so that gradients flow; the first ones are drawn from the seed.
        """
        added = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": pose_dim}
        unet = cls._without_weights(parent, **added)
        weights = dict(parent.state_dict())
        draws = generator(seed, "pose embedding")
        for name, tensor in unet.state_dict().items():
            if name not in weights:
                first = ".linear_1." in name
                weights[name] = normal(tensor.shape, draws)[0] if first else torch.zeros_like(tensor)
        unet.load_state_dict(weights)
        return unet

    @classmethod
    def _without_weights(cls, parent: UNet2DConditionModel, **changes: Any) -> Self:
        """A network of the parent's configuration, with changes, whose weights are to be loaded.

        Those of a large one would take seconds to be drawn.
        """
        config = {key: value for key, value in parent.config.items() if not key.startswith("_")}
        with torch.device("meta"):
            unet: Self = cls(**{**config, **changes})
        return unet.to_empty(device=parent.device)

    def attentions(self) -> dict[str, ImageSetAttention]:
        """The Image-Set Attention of each transformer block, by its name in the state."""
        return {name: module for name, module in self.named_modules() if isinstance(module, ImageSetAttention)}

    def context_parameters(self) -> list[nn.Parameter]:
        """What reads the context images. New, or put to a new use, it has more to learn than the parent's weights.

        The null rows are none of it: they are the parent's, in the use that they had.
        """
        read = ("to_k.", "to_v.", "slot_embedding", "query_rays.", "key_rays.")
        parts = ("context_proj", "context_level", "context_pose", "class_embedding")
        projections = [module for part in parts if (module := getattr(self, part, None)) is not None]
        return [
            *(p for one in self.attentions().values() for name, p in one.named_parameters() if name.startswith(read)),
            *(p for projection in projections for p in projection.parameters()),
        ]

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Compiles transformers and ResNet blocks, all with their norms, as `torch.compile` is told to.

        On a GPU it puts the channels of weights last, as its convolutions want them: compiled norms leave them there.
        """
        torch.compiler.config.recompile_limit = max(torch.compiler.config.recompile_limit, GRAPHS)
        if self.device.type == "cuda":
            self.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
        super().compile_repeated_blocks(*args, **kwargs)  # type: ignore[no-untyped-call]

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: ContextImages | Window,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """One of three passes, told apart by the context, so that what wraps `forward` (DDP, offloading) sees them all.

        - `ContextImages`: the training pass, see `forward_sets`.
        - `Window`: predicts for noisy latents `sample` (rows, 4, h, w) at `timestep`, one or (rows).
        - `Window(record=True)`: adds one context image a set to the window's cache, `sample` its latents (S, 4, h, w)
          or patch tokens (S, L, context_dim), `timestep` the noise on them, (S). What it returns has no meaning.
        """
        if isinstance(encoder_hidden_states, ContextImages):
            output = self.forward_sets(sample, timestep, encoder_hidden_states)
        else:
            output = self._read_or_draw(sample, timestep, encoder_hidden_states)
        return UNet2DConditionOutput(sample=output) if return_dict else (output,)

    def forward_sets(self, noisy: Tensor, timesteps: Tensor, context: ContextImages) -> Tensor:
        """The teacher-forcing pass: predicts for every image of every set from the context images before it.

        Args:
            noisy: z_n, (B, N, 4, h, w).
            timesteps: t_n, (B, N).

        Returns:
            Predictions (B, N, 4, h, w), zero after the end of a set, and for the first image unless `predict_first`.
            Context image k has no influence on those for n <= k, whatever it holds.
        """
        sets, most = timesteps.shape
        lengths = context.lengths or (most,) * sets
        positions = max(lengths)
        order = sorted(range(sets), key=lambda place: -lengths[place])  # the longest first
        counts = tuple(sum(length > n for length in lengths) for n in range(positions))
        first = 0 if context.predict_first else 1
        drawn = _places(order, counts, noisy.device, first)
        rows, times = noisy[drawn], timesteps[drawn]  # (rows, 4, h, w), (rows); position-major
        to_draw = len(rows)
        read = _places(order, counts[1:], noisy.device)  # an image is context for those after it
        images, levels = context.images[read], context.timesteps[read]  # (context rows, …), (context rows)
        poses, seen_from, tokens = None, None, None
        if context.poses is not None:
            poses = torch.cat([context.poses[drawn], context.poses[read]])  # (rows + context rows, pose_dim)
            seen_from = Viewpoints(poses, noisy.dtype)
        if self.variant == "self":
            rows, times = torch.cat([rows, images]), torch.cat([times, levels])
        else:
            seen = None if poses is None else poses[to_draw:]
            tokens = self._context_tokens(images, levels, seen)  # (context rows, L, cross_attention_dim)
        dropped = None if context.dropped is None else context.dropped[drawn]  # (rows)
        batch = TeacherForcing(counts, tokens, dropped, seen_from, first=first, given=context.given)
        own = None if poses is None else poses[: len(rows)]
        output = self._denoise(rows, times, batch, own)[:to_draw]  # (rows, 4, h, w)
        return torch.zeros_like(noisy, dtype=output.dtype).index_put(drawn, output)  # (B, N, 4, h, w)

    def _read_or_draw(self, sample: Tensor, timestep: Tensor, window: Window) -> Tensor:
        poses = None if window.seen_from is None else window.seen_from.poses
        if window.record and self.variant == "dino":
            tokens = self._context_tokens(sample, timestep, poses)  # (S, L, cross_attention_dim)
            for attention in self.attentions().values():
                attention.record(tokens, window.cache, window.seen_from)
            return tokens
        if poses is not None and window.unconditional:
            poses = torch.cat([poses, poses])  # both halves of guidance draw the same view
        return self._denoise(sample, timestep, window, poses)

    def _denoise(
        self, sample: Tensor, timesteps: Tensor, context: TeacherForcing | Window, poses: Tensor | None
    ) -> Tensor:
        labels = None if poses is None else poses.to(sample.dtype)
        return super().forward(sample, timesteps, context, class_labels=labels, return_dict=False)[0]  # type: ignore[no-any-return]

    def _context_tokens(self, patches: Tensor, levels: Tensor, poses: Tensor | None) -> Tensor:
        """What blocks read of images, (…, L, cross_attention_dim).

        Args:
            patches: DINOv2's tokens, (…, L, context_dim).
            levels: the noise on each image, (…).
            poses: (…, pose_dim).
        """
        times = self.time_proj(levels.flatten()).to(patches.dtype)  # (images, sinusoids)
        level = self.context_level(times)  # (images, cross_attention_dim)
        tokens: Tensor = self.context_proj(patches) + level.view(*levels.shape, 1, level.shape[-1])
        if poses is not None:
            tokens = tokens + self.context_pose(poses.to(patches.dtype)).unsqueeze(-2)
        return tokens


def _places(order: Sequence[int], counts: Sequence[int], device: torch.device, first: int = 0) -> tuple[Tensor, Tensor]:
    """Set and position of each row of a position-major batch: the first `counts[n]` sets of `order` at each n.

    Args:
        first: the first position that has rows.
    """
    sets = [place for count in counts[first:] for place in order[:count]]
    positions = [n for n, count in enumerate(counts) for _ in range(count) if n >= first]
    rows = sent([sets, positions], device, torch.long)
    return rows[0], rows[1]


def empty_prompt(folder: Path) -> Tensor:
    """Stable Diffusion's embedding of the empty prompt, all of its tokens: (L0, cross_attention_dim)."""
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", use_safetensors=True)
    align(encoder)
    tokens = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
    with torch.no_grad():
        return encoder(tokens.input_ids).last_hidden_state[0]  # type: ignore[no-any-return]
