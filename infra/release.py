"""Makes ``models/released/`` of what a profile made in a checkout: python -m infra.release /path/to/checkout

Weights are kept in half precision (who loads them gets float32). What a model shares with the foundation is a relative
link to the foundation's file; ``digests.json`` tells that file's content, as of every other. Parameters, DVC's lock and
what the evaluations found stand beside the models, by the names that they have in a checkout.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from m2m.errors import UserError
from m2m.files import file_digest, new_folder, write_atomically, write_digests

RELEASED, FOUNDATION = Path("models/released"), Path("models/foundation")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
README = """---
license: apache-2.0
library_name: diffusers
commit: {commit}
---

# Released models

Both variants of M2M, and each fine-tuned to novel views (`-nvs`) and to visual procedures (`-vpg`): trained with
`params.yaml`, on the dataset whose hashes stand in `dvc.lock`. Each folder is a diffusers pipeline in half precision,
whose weights of the foundation are links to `models/foundation`; copied elsewhere, it is whole by `cp -rL`.
`metrics/` and `reports/` hold what the evaluations found, `m2m lineage models/released/m2m-dino` tells where one comes
from.
"""


def run(made: Path, released: Path = RELEASED, foundation: Path = FOUNDATION) -> list[Path]:
    """Releases all models of the checkout `made`; returns their folders.

    Raises:
        UserError: `made` has no model, or one that was not made from this checkout's foundation.
    """
    shared = {file_digest(path): path for path in sorted(foundation.rglob("*.safetensors"))}
    models = sorted(path.parent for path in made.glob("models/m2m-*/model_index.json"))
    if not models:
        raise UserError(f"{made}/models: no trained model is there")
    commit = subprocess.run(
        ["git", "-C", str(made), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    files = ["params.yaml", "dvc.lock"]
    for model in models:
        item = model.name.removeprefix("m2m-")
        with new_folder(released / model.name) as folder:
            shutil.copytree(model, folder, dirs_exist_ok=True)
            halve(folder / WEIGHTS)
            for weights in sorted(folder.rglob("*.safetensors")):
                if weights != folder / WEIGHTS:
                    if not (source := shared.get(file_digest(weights))):
                        raise UserError(f"{model / weights.relative_to(folder)}: not of {foundation}")
                    place = released / model.name / weights.relative_to(folder)
                    weights.unlink()
                    weights.symlink_to(os.path.relpath(source, place.parent))
            scores = json.loads((made / f"metrics/evaluate-{item}.json").read_text())
            card = (folder / "README.md").read_text()
            write_atomically(folder / "README.md", f"{card}\n{_scores(scores, commit)}".encode())
            write_digests(folder)
        shutil.copytree(made / f"reports/evaluate-{item}", released / f"reports/evaluate-{item}", dirs_exist_ok=True)
        files += [f"metrics/evaluate-{item}.json"]
    for name in files:
        write_atomically(released / name, (made / name).read_bytes())
    write_atomically(released / "README.md", README.format(commit=commit).encode())
    return [released / model.name for model in models]


def halve(weights: Path) -> None:
    """Keeps a file of weights in half precision, in its place."""
    tensors = {name: tensor.to(torch.float16) for name, tensor in load_file(weights).items()}
    weights.unlink()
    save_file(tensors, weights, metadata={"format": "pt"})


def _scores(scores: Mapping[str, object], commit: str) -> str:
    rows = "".join(f"| `{name}` | {value:.4g} |\n" for name, value in scores.items() if isinstance(value, float))
    return f"## Scores\n\nOn the test split, one seed; made by commit `{commit}`.\n\n| | |\n|---|---|\n{rows}"


if __name__ == "__main__":
    try:
        for one in run(Path(sys.argv[1])):
            print(one)
    except (IndexError, UserError) as error:
        sys.exit(f"infra.release: {error if isinstance(error, UserError) else 'name the checkout that has the models'}")
