import json
from pathlib import Path

import pytest
import torch

from m2m.errors import UserError
from m2m.models.classifier import ARCHITECTURE, FEATURES, GEOMETRY, WorldClassifier, load_class_network

CLASSES = {"noun": ("circle", "star"), "colour": ("red", "green", "blue")}


@pytest.fixture
def network() -> WorldClassifier:
    torch.manual_seed(0)
    return WorldClassifier(CLASSES, widths=(8, 16, 16, 24)).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_it_reads_features_classes_and_places(network: WorldClassifier, images: torch.Tensor) -> None:
    readings = network(images)
    assert readings.features.shape == (5, FEATURES)
    assert readings.features.dtype == torch.float32
    assert FEATURES <= 64  # FID's bias on few pictures grows with the number of features
    assert {head: logits.shape for head, logits in readings.logits.items()} == {"noun": (5, 2), "colour": (5, 3)}
    assert readings.geometry.shape == (5, len(GEOMETRY))
    names = readings.names(network.classes, "colour")
    assert names == [CLASSES["colour"][index] for index in readings.logits["colour"].argmax(dim=1)]


@torch.no_grad()
def test_a_picture_is_read_alike_in_any_company(network: WorldClassifier, images: torch.Tensor) -> None:
    together, alone = network(images), network(images[3:4])
    torch.testing.assert_close(together.features[3:4], alone.features, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.geometry[3:4], alone.geometry, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_it_comes_back_from_its_folder_to_the_bit(
    network: WorldClassifier, images: torch.Tensor, tmp_path: Path
) -> None:
    network.save_pretrained(tmp_path / "new" / "folder")
    loaded = WorldClassifier.from_pretrained(tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["config.json", "model.safetensors"]
    assert loaded.classes == network.classes
    assert loaded.widths == network.widths
    assert not loaded.training
    assert not any(value.requires_grad for value in loaded.parameters())
    before, after = network(images), loaded(images)
    assert torch.equal(before.features, after.features)
    assert torch.equal(before.geometry, after.geometry)
    assert all(torch.equal(before.logits[head], after.logits[head]) for head in CLASSES)


def test_the_same_network_gives_the_same_files(network: WorldClassifier, tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        network.save_pretrained(folder)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_folder_that_is_not_its_own_is_refused(network: WorldClassifier, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        WorldClassifier.from_pretrained(tmp_path)
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architecture": "inception-v3-compat"}))
    with pytest.raises(ValueError, match=f"architecture is 'inception-v3-compat', expected '{ARCHITECTURE}'"):
        WorldClassifier.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        WorldClassifier.from_pretrained(tmp_path)


def test_a_class_network_is_loaded_by_the_loader_of_its_architecture(network: WorldClassifier, tmp_path: Path) -> None:
    loaders = {ARCHITECTURE: WorldClassifier.from_pretrained}
    network.save_pretrained(tmp_path)
    loaded, architecture = load_class_network(tmp_path, loaders)
    assert loaded is not None
    assert (loaded.classes, architecture) == (network.classes, ARCHITECTURE)
    assert load_class_network(tmp_path, {}) == (None, ARCHITECTURE)
    (tmp_path / "model.safetensors").unlink()
    assert load_class_network(tmp_path, {}) == (None, ARCHITECTURE), "nothing else of it is read"
    with pytest.raises(UserError, match="incomplete or damaged") as caught:
        load_class_network(tmp_path, loaders)
    assert "\n" not in str(caught.value)
