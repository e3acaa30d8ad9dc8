"""The stage with published weights: from a hub to folders that the evaluation loads."""

import hashlib
import io
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from m2m.diffusion.stable_diffusion import SafetyChecker
from m2m.errors import UserError
from m2m.evaluation.networks import Networks
from m2m.evaluation.published import InceptionV3, Lpips
from m2m.files import folder_digest
from m2m.foundation import encoders
from m2m.params import HubFile, HubFoundation, TransformerFit
from m2m.stages import foundation
from m2m.store import LocalStore
from tests.safety import write_safety_checker

REVISION = "0123456789abcdef0123456789abcdef01234567"
PICTURES = torch.randint(256, (2, 64, 64, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def zeros(shapes: Mapping[str, torch.Size]) -> bytes:
    """A state dictionary as torch saves it: all zeros, which takes next to no space."""
    buffer = io.BytesIO()
    torch.save({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def weights() -> tuple[bytes, bytes]:
    """Inception-v3's and AlexNet's names and shapes, as published."""
    with torch.device("meta"):
        inception, lpips = InceptionV3().state_dict(), Lpips().state_dict()
    alexnet = {name: value.shape for name, value in lpips.items() if name.startswith("features.")}
    classes = {"classifier.6.weight": torch.Size((1000, 4096)), "classifier.6.bias": torch.Size((1000,))}
    return zeros({name: value.shape for name, value in inception.items() if value.shape}), zeros(alexnet | classes)


@pytest.fixture
def params(
    hub: Any,
    weights: tuple[bytes, bytes],
    tiny_stable_diffusion: Path,
    tiny_dino: Path,
    tokenizer: CLIPTokenizer,
    tmp_path: Path,
) -> HubFoundation:
    tiny = TransformerFit(images=1, batch_size=1, learning_rate=1e-3, hidden_size=16, layers=1)
    encoders.save_clip(tmp_path / "clip", encoders.build_clip(tiny, tokenizer), tokenizer)
    write_safety_checker(
        tmp_path / "checker", rejected=PICTURES[:1].numpy(), accepted=PICTURES[1:].numpy(), subfolders=True
    )
    for repo, folder in (
        ("sd/checker", tmp_path / "checker"),
        ("sd/tiny", tiny_stable_diffusion),
        ("meta/dino", tiny_dino),
        ("meta/clip", tmp_path / "clip"),
    ):
        hub.add(repo, folder)
    made: HubFoundation = hub.params(*weights)
    return made


def test_the_evaluation_loads_what_the_stage_fetched(hub: Any, params: HubFoundation, tmp_path: Path) -> None:
    out, work = tmp_path / "models" / "foundation", tmp_path / "work"
    foundation.run(params, out=out, work=work)
    networks = Networks.load(out, device="cpu")
    assert networks.names["inception"].startswith("inception-v3-compat@")
    assert networks.names["perceptual"].startswith("lpips-alexnet-v0.1@")
    assert networks.attributes == ()
    tensors = load_file(out / "perceptual" / "model.safetensors")
    assert not any(name.startswith("classifier") for name in tensors), "they are nine tenths of the file"
    assert all(tensors[f"heads.{layer}.weight"].sum() > 0 for layer in range(5))
    pictures = torch.randint(256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert networks.perceptual(pictures, pictures.flip(3)).tolist() == [0, 0], "convolutions of zeros see nothing"
    assert SafetyChecker(out / "stable-diffusion" / "safety_checker", device="cpu")(PICTURES).tolist() == [True, False]
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["foundation"]
    assert sorted(path.name for path in out.iterdir()) == [
        *("clip", "dino", "inception", "perceptual", "sources.json", "stable-diffusion"),
    ]

    # Another network's weights, rightly pinned, are refused, and what was there stays.
    before = folder_digest(out)
    other = zeros({"layer.weight": torch.Size((3,))})
    hub.files["/other.pth"] = other
    pinned = HubFile(url=f"{hub.url}/other.pth", sha256=hashlib.sha256(other).hexdigest())
    for name, network in (("inception", "inception-v3-compat"), ("perceptual", "lpips-alexnet-v0.1")):
        words = rf"other\.pth: these are not the weights of {network}; check foundation\.{name}"
        with pytest.raises(UserError, match=words):
            foundation.run(params.model_copy(update={name: pinned}), out=out, work=work)
    del hub.repositories["sd/checker"]["feature_extractor/preprocessor_config.json"]
    shutil.rmtree(work / "hub" / "sd--checker")
    words = "sd/checker at 0123.*: no safety checker of Stable Diffusion.* check foundation.safety_checker"
    with pytest.raises(UserError, match=words):
        foundation.run(params, out=out, work=work)
    assert folder_digest(out) == before
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["foundation"]


def test_what_was_mirrored_needs_no_hub(hub: Any, params: HubFoundation, tmp_path: Path) -> None:
    store, out = LocalStore(tmp_path / "store"), tmp_path / "here" / "foundation"
    assert foundation.run(params, out=out, work=tmp_path / "work", store=store) == ""
    told = foundation.run(params, out=out, work=tmp_path / "work", store=store, mirror=True)
    files = [path for path in (tmp_path / "work" / "hub").rglob("*") if path.is_file()]
    fetched = [path for path in files if ".cache" not in path.parts and not re.fullmatch(f"{REVISION}.json", path.name)]
    assert told.startswith(f"{len(fetched)} files, ")
    assert told.endswith(f"are in the store {tmp_path / 'store'}")
    hub.status, hub.requests = 503, []
    there = tmp_path / "there" / "foundation"
    foundation.run(params, out=there, work=tmp_path / "work of another machine", store=store)
    assert hub.requests == []
    assert folder_digest(there) == folder_digest(out)
