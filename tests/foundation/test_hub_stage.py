"""The stage with published weights: from a hub to folders that the evaluation loads."""

import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPTokenizer

from m2m.errors import UserError
from m2m.evaluation.inception_v3 import InceptionV3
from m2m.evaluation.networks import Networks
from m2m.files import folder_digest
from m2m.foundation import contrast
from m2m.params import HubFile, HubFoundation, TransformerFit
from m2m.stages import foundation


@pytest.fixture(scope="module")
def weights() -> bytes:
    """Inception-v3's names and shapes, as published: all zeros, which takes next to no space."""
    with torch.device("meta"):
        state = InceptionV3().state_dict()
    buffer = io.BytesIO()
    torch.save({name: torch.zeros(()).expand(value.shape) for name, value in state.items() if value.shape}, buffer)
    return buffer.getvalue()


@pytest.fixture
def params(
    hub: Any, weights: bytes, tiny_stable_diffusion: Path, tiny_dino: Path, tokenizer: CLIPTokenizer, tmp_path: Path
) -> HubFoundation:
    tiny = TransformerFit(images=1, batch_size=1, learning_rate=1e-3, hidden_size=16, layers=1)
    contrast.save(tmp_path / "clip", contrast.build(tiny, tokenizer), tokenizer)
    for repo, folder in (
        ("sd/tiny", tiny_stable_diffusion),
        ("meta/dino", tiny_dino),
        ("meta/clip", tmp_path / "clip"),
    ):
        hub.add(repo, folder)
    made: HubFoundation = hub.params(weights)
    return made


def test_the_evaluation_loads_what_the_stage_fetched(hub: Any, params: HubFoundation, tmp_path: Path) -> None:
    out, work = tmp_path / "models" / "foundation", tmp_path / "work"
    foundation.run(params, out=out, work=work)
    networks = Networks.load(out, device="cpu")
    assert networks.names["inception"].startswith("inception-v3-compat@")
    assert networks.attributes == ()
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["foundation"]
    assert sorted(path.name for path in out.iterdir()) == ["clip", "dino", "inception", "stable-diffusion"]

    # Another network's weights, rightly pinned, are refused, and what was there stays.
    before = folder_digest(out)
    buffer = io.BytesIO()
    torch.save({"layer.weight": torch.zeros(3)}, buffer)
    hub.files["/other.pth"] = buffer.getvalue()
    other = HubFile(url=f"{hub.url}/other.pth", sha256=hashlib.sha256(buffer.getvalue()).hexdigest())
    with pytest.raises(UserError, match=r"other\.pth: these are not the weights of inception-v3-compat"):
        foundation.run(params.model_copy(update={"inception": other}), out=out, work=work)
    assert folder_digest(out) == before
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["foundation"]
