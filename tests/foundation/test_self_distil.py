from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import BitImageProcessorPil, Dinov2Model

from m2m.foundation import self_distil
from m2m.foundation.self_distil import CENTRE_MOMENTUM, TEACHER_MOMENTUM, SelfDistillation, distillation_loss, view
from m2m.foundation.world import Lessons
from m2m.params import TransformerFit

TINY = TransformerFit(images=1, batch_size=1, learning_rate=1e-3, hidden_size=32, layers=1)


@pytest.fixture
def pair() -> SelfDistillation:
    torch.manual_seed(0)
    return SelfDistillation(TINY)


def test_a_view_is_a_function_of_its_draws(lessons: Lessons) -> None:
    first, same = (view(lessons.images, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, same)
    assert first.shape == lessons.images.shape
    draws = torch.Generator().manual_seed(1)
    view(lessons.images, draws)
    assert not torch.equal(view(lessons.images, draws), first)


def test_a_view_shows_a_part_of_the_picture_in_its_own_colours() -> None:
    rows = torch.arange(64).float().view(1, 1, 64, 1).expand(200, 3, 64, 64) * 2 + 60
    columns = rows.transpose(2, 3)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self_distil.MEAN, self_distil.STD))
    shown = [
        (view(ramp.to(torch.uint8), torch.Generator().manual_seed(0)) * std + mean) * 255 for ramp in (rows, columns)
    ]
    # Of a grey ramp, all that a view changes can be read back: grey stays grey, the crop is 60 to 100 % of the side.
    grey = [picture.std(dim=1).max().item() for picture in shown]
    assert max(grey) < 0.01
    steps = [shown[0].diff(dim=2)[:, 0, 20:40].mean(dim=(1, 2)), shown[1].diff(dim=3)[:, 0, :, 20:40].mean(dim=(1, 2))]
    assert (steps[0] > 0).all()  # never upside down
    scales = steps[0] / 2
    assert scales.min() > 0.6 * 0.85 - 0.01
    assert scales.max() < 1.15 + 0.01
    mirrored = (steps[1] < 0).float().mean().item()
    assert 0.35 < mirrored < 0.65
    torch.testing.assert_close(steps[1].abs(), steps[0], atol=0.05, rtol=0)


def test_pixels_are_what_the_saved_processor_gives(pair: SelfDistillation, lessons: Lessons, tmp_path: Path) -> None:
    self_distil.save(tmp_path, pair.student.eval())
    processor = BitImageProcessorPil.from_pretrained(tmp_path)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in lessons.images]
    found = processor(pictures, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, self_distil.pixels(lessons.images), atol=1e-5, rtol=0)
    loaded = Dinov2Model.from_pretrained(tmp_path)
    with torch.no_grad():
        tokens = loaded(found).last_hidden_state
        assert tokens.shape == (len(pictures), 65, 32)
        assert torch.equal(tokens, pair.student(found).last_hidden_state)


def test_the_teacher_follows_the_student_and_learns_in_no_other_way(pair: SelfDistillation, lessons: Lessons) -> None:
    assert not any(value.requires_grad for value in (*pair.teacher.parameters(), *pair.teacher_head.parameters()))
    with torch.no_grad():
        for value in (*pair.student.parameters(), *pair.student_head.parameters()):
            value.add_(1)
    before = {name: value.clone() for name, value in pair.teacher.state_dict().items()}
    pair.follow()
    for name, value in pair.teacher.state_dict().items():
        torch.testing.assert_close(value, before[name] + (1 - TEACHER_MOMENTUM), atol=1e-5, rtol=1e-4)
    loss = distillation_loss(pair, lessons.images)(torch.arange(4), torch.Generator().manual_seed(0))
    loss.backward()
    assert all(value.grad is None for value in pair.teacher.parameters())
    assert sum(value.grad is not None for value in pair.student.parameters()) > 10


def test_targets_are_sharp_distributions_around_a_centre_that_moves(pair: SelfDistillation) -> None:
    logits = torch.randn(6, 5, self_distil.PROTOTYPES, generator=torch.Generator().manual_seed(0)) + 3
    target = pair.targets(logits, 1)
    torch.testing.assert_close(target.sum(dim=-1), torch.ones(6, 5))
    torch.testing.assert_close(pair.centres[1], (1 - CENTRE_MOMENTUM) * logits.mean(dim=(0, 1)))
    assert torch.equal(pair.centres[0], torch.zeros(self_distil.PROTOTYPES))
    assert (target.max(dim=-1).values > logits.softmax(dim=-1).max(dim=-1).values).all()
    for _ in range(200):
        pair.targets(logits, 1)
    torch.testing.assert_close(pair.centres[1], logits.mean(dim=(0, 1)), atol=1e-3, rtol=0)


def test_the_student_comes_to_agree_with_a_teacher_that_stands_still(
    pair: SelfDistillation,
    lessons: Lessons,
    descend: Callable[..., tuple[float, float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entropies: list[float] = []
    targets = pair.targets

    def watched(logits: Tensor, which: int) -> Tensor:
        target = targets(logits, which)
        entropies.append(-(target * target.clamp_min(1e-12).log()).sum(dim=-1).mean().item())
        return target

    loss = distillation_loss(pair, lessons.images)
    monkeypatch.setattr(pair, "follow", lambda: None)
    monkeypatch.setattr(pair, "targets", watched)
    for _ in range(30):  # until the centres have found their place
        with torch.no_grad():
            loss(torch.arange(4), torch.Generator().manual_seed(0))
    first, last = descend(
        pair, lambda batch, _: loss(batch, torch.Generator().manual_seed(0)), pictures=4, steps=30, rate=1e-2
    )
    # No cross-entropy is below the entropy of its target.
    floor = sum(entropies[-2:])
    assert floor < last < floor + 0.5 * (first - floor), (floor, first, last)
