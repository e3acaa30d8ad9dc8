"""The small DINOv2, trained without labels: self-distillation of the picture and of its masked patches.

A student matches a teacher, its own moving average, on another view of the same picture (DINO, Caron et al., 2021) and
on the patches that the student does not see (iBOT, Zhou et al., 2022), as DINOv2 (Oquab et al., 2023) does. Views
differ in crop, mirror and brightness, never in hue: colour is content here.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from m2m.foundation.fit import Loss
from m2m.params import TransformerFit

SIDE, PATCH, HEADS = 64, 8, 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PROTOTYPES = 512
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.05
TEACHER_MOMENTUM, CENTRE_MOMENTUM = 0.996, 0.9
MASKED = 0.4


def build(params: TransformerFit) -> Dinov2Model:
    """The untrained encoder for 64-pixel pictures: 64 patches and a class token."""
    return Dinov2Model(
        Dinov2Config(
            hidden_size=params.hidden_size,
            num_hidden_layers=params.layers,
            num_attention_heads=HEADS,
            mlp_ratio=4,
            image_size=SIDE,
            patch_size=PATCH,
            use_mask_token=True,
        )
    )


class SelfDistillation(nn.Module):
    """A student encoder with its head, the teacher that follows it, and the teacher's centres."""

    def __init__(self, params: TransformerFit) -> None:
        super().__init__()
        self.student, self.teacher = build(params), build(params)
        self.student_head, self.teacher_head = head(params.hidden_size), head(params.hidden_size)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher_head.load_state_dict(self.student_head.state_dict())
        self.teacher.requires_grad_(False)
        self.teacher_head.requires_grad_(False)
        self.register_buffer("centres", torch.zeros(2, PROTOTYPES))
        self.centres: Tensor

    @torch.no_grad()
    def follow(self) -> None:
        """Move the teacher towards the student."""
        for slow, fast in ((self.teacher, self.student), (self.teacher_head, self.student_head)):
            torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), 1 - TEACHER_MOMENTUM)

    @torch.no_grad()
    def targets(self, logits: Tensor, which: int) -> Tensor:
        """Centred and sharpened teacher outputs; the centre (0: class token, 1: patches) moves along."""
        target = F.softmax((logits - self.centres[which]) / TEACHER_TEMPERATURE, dim=-1)
        self.centres[which].lerp_(logits.flatten(0, -2).mean(dim=0), 1 - CENTRE_MOMENTUM)
        return target


def head(width: int) -> nn.Module:
    """Tokens to prototypes."""
    return nn.Sequential(
        nn.Linear(width, 2 * width),
        nn.GELU(),
        nn.Linear(2 * width, width),
        Unit(),
        nn.Linear(width, PROTOTYPES, bias=False),
    )


class Unit(nn.Module):
    """Vectors to length one."""

    def forward(self, tokens: Tensor) -> Tensor:
        return F.normalize(tokens, dim=-1)


def pixels(images: Tensor) -> Tensor:
    """uint8 (n, 3, H, W) -> normalised as ImageNet is, which is what DINOv2's processor gives."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def view(images: Tensor, draws: torch.Generator) -> Tensor:
    """A random crop of 60 to 100 % of the side, maybe mirrored, brighter or darker: uint8 -> normalised pixels."""
    n = len(images)
    scale = 0.6 + 0.4 * torch.rand(n, generator=draws)
    shift = (1 - scale)[:, None] * (2 * torch.rand(n, 2, generator=draws) - 1)
    mirror = torch.where(torch.rand(n, generator=draws) < 0.5, -1.0, 1.0)
    affine = torch.zeros(n, 2, 3)
    affine[:, 0, 0], affine[:, 1, 1], affine[:, :, 2] = scale * mirror, scale, shift
    grid = F.affine_grid(affine, [n, 3, SIDE, SIDE], align_corners=False)
    crop = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    brightness = 1 + 0.15 * (2 * torch.rand(n, 1, 1, 1, generator=draws) - 1)
    return pixels((crop * brightness).clamp(0, 255))


def distillation_loss(pair: SelfDistillation, images: Tensor) -> Loss:
    """Cross-entropy to the teacher: class token across two views, patches within a view where the student's are masked.

    Args:
        images: uint8 (n, 3, 64, 64).
    """

    def loss(batch: Tensor, draws: torch.Generator) -> Tensor:
        pair.follow()
        shown = images[batch]
        views = torch.cat([view(shown, draws), view(shown, draws)])  # (2b, 3, 64, 64)
        masked = torch.rand(len(views), (SIDE // PATCH) ** 2, generator=draws) < MASKED
        with torch.no_grad():
            taught = pair.teacher_head(pair.teacher(views).last_hidden_state)  # (2b, 65, prototypes)
        learned = pair.student_head(pair.student(views, bool_masked_pos=masked).last_hidden_state) / STUDENT_TEMPERATURE
        whole = pair.targets(taught[:, 0], 0).roll(len(shown), dims=0)
        patches = pair.targets(taught[:, 1:], 1)
        across = -(whole * F.log_softmax(learned[:, 0], dim=-1)).sum(dim=-1).mean()
        within = -(patches * F.log_softmax(learned[:, 1:], dim=-1)).sum(dim=-1)[masked].mean()
        return across + within

    return loss


def save(folder: Path, encoder: Dinov2Model) -> None:
    """Write a folder that ``Dinov2Model`` and its image processor load."""
    encoder.save_pretrained(folder, safe_serialization=True)
    size = {"height": SIDE, "width": SIDE}
    BitImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size=size, image_mean=list(MEAN), image_std=list(STD)
    ).save_pretrained(folder)
