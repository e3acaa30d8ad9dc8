import colorsys
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import BitImageProcessorPil, Dinov2Model

from m2m.foundation import self_supervise
from m2m.foundation.self_supervise import Contrast, contrastive_loss, hue_rotation, look, quarters
from m2m.foundation.world import Lessons
from m2m.params import TransformerFit

TINY = TransformerFit(images=1, batch_size=1, learning_rate=1e-3, hidden_size=32, layers=1)


@pytest.fixture
def network() -> Contrast:
    torch.manual_seed(0)
    return Contrast(TINY)


def test_a_look_is_a_function_of_its_draws(lessons: Lessons) -> None:
    first, same = (look(lessons.images, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, same)
    assert first.shape == lessons.images.shape
    draws = torch.Generator().manual_seed(1)
    look(lessons.images, draws)
    assert not torch.equal(look(lessons.images, draws), first)


def test_a_look_changes_colours_and_leaves_shapes_where_they_are() -> None:
    picture = torch.full((300, 3, 64, 64), 90, dtype=torch.uint8)
    picture[:, 0, 28:36, 20:52] = 200  # a red bar on grey
    shown = look(picture, torch.Generator().manual_seed(0))
    bar, ground = shown[:, :, 28:36, 20:52].flatten(2), shown[:, :, :28].flatten(2)
    assert bar.std(dim=2).max() < 1e-4
    assert ground.std(dim=2).max() < 1e-4
    seen = (bar[:, :, 0] - ground[:, :, 0]).norm(dim=1)
    assert (seen > 0.05).all()
    assert seen.max() > 2 * seen.min()  # contrast
    brightest = bar[:, :, 0].argmax(dim=1).bincount(minlength=3)
    assert (brightest > 30).all()  # of 300: red, green and blue
    colourless = (bar[:, :, 0] - ground[:, :, 0]) * torch.tensor(self_supervise.STD)
    grey = (colourless.std(dim=1) < 1e-4).double().mean().item()
    assert grey == pytest.approx(self_supervise.GREY, abs=0.08)  # three standard deviations


def test_hues_are_rotated_about_grey() -> None:
    angles = torch.tensor([0.0, 2 * math.pi / 3, 1.0])
    turned = hue_rotation(angles)
    torch.testing.assert_close(turned @ torch.ones(3), torch.ones(3, 3))
    torch.testing.assert_close(turned @ turned.mT, torch.eye(3).expand(3, 3, 3))
    torch.testing.assert_close(turned[0], torch.eye(3))
    red = turned[1] @ torch.tensor([1.0, 0, 0])
    assert sorted(red.round().tolist()) == [0, 0, 1]
    assert colorsys.rgb_to_hsv(*red.clamp(0, 1).tolist())[0] in (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_pixels_are_what_the_saved_processor_gives(network: Contrast, lessons: Lessons, tmp_path: Path) -> None:
    self_supervise.save(tmp_path, network.encoder.eval())
    processor = BitImageProcessorPil.from_pretrained(tmp_path)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in lessons.images]
    found = processor(pictures, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, self_supervise.pixels(lessons.images), atol=1e-5, rtol=0)
    loaded = Dinov2Model.from_pretrained(tmp_path)
    with torch.no_grad():
        tokens = loaded(found).last_hidden_state
        assert tokens.shape == (len(pictures), 65, 32)
        torch.testing.assert_close(tokens, network.encoder(found).last_hidden_state, atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_textbooks(network: Contrast, lessons: Lessons) -> None:
    looks = torch.stack([lessons.images[:6], lessons.images[6:12]])
    batch = torch.tensor([0, 3, 4])
    found = contrastive_loss(network, looks)(batch, torch.Generator().manual_seed(5))
    draws = torch.Generator().manual_seed(5)
    shown = torch.cat([look(looks[0, batch], draws), look(looks[1, batch], draws)])
    views, colours = network(shown)
    terms = []
    for i in range(6):
        other = (i + 3) % 6
        exponents = [math.exp(F.cosine_similarity(views[i], views[j], dim=0).item() / 0.1) for j in range(6)]
        terms.append(-math.log(exponents[other] / (sum(exponents) - exponents[i])))
    patch = shown[1, :, 8:16, 24:32]  # row 1, column 3
    quarter = patch[:, 4:, :4].mean(dim=(1, 2))  # its lower left
    torch.testing.assert_close(quarters(shown)[1, 11].view(3, 4)[:, 2], quarter)
    error = (colours - quarters(shown)).square().mean().item()
    assert found.item() == pytest.approx(sum(terms) / 6 + error, rel=1e-4)


def test_it_learns_which_looks_belong_together(
    network: Contrast, lessons: Lessons, descend: Callable[..., tuple[float, float]]
) -> None:
    looks = torch.stack([lessons.images[:8], lessons.images[:8]])
    loss = contrastive_loss(network, looks)
    first, last = descend(
        network, lambda batch, _: loss(batch, torch.Generator().manual_seed(0)), pictures=8, steps=40, rate=1e-2
    )
    assert last < 0.5 * first
    assert len(network.matrices()) == 6  # queries, keys, values, output and two of the perceptron
