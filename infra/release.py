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
from m2m.files import file_digest, new_folder, write_digests

RELEASED, FOUNDATION = Path("models/released"), Path("models/foundation")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
AS_MADE = ("params.yaml", "dvc.lock")
MAY_DIFFER = tuple(f":(exclude){name}" for name in (*AS_MADE, "metrics", "models"))
"""From the commit, in the checkout: what the release holds itself, or what was made."""
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
    """Releases all models of the checkout `made`, in place of what was released before; returns their folders.

    Raises:
        UserError: a model was not evaluated, or not made from this checkout's foundation, or the checkout's code is not
            that of its commit. Then nothing is changed.
    """
    shared = {file_digest(path): path for path in sorted(foundation.rglob("*.safetensors"))}
    models = sorted(path.parent for path in made.glob("models/m2m-*/model_index.json"))
    if not models:
        raise UserError(f"{made}/models: no trained model is there")
    items = [model.name.removeprefix("m2m-") for model in models]
    needed = [*AS_MADE, *(f"metrics/evaluate-{item}.json" for item in items)]
    plots = [f"reports/evaluate-{item}" for item in items]
    if missing := [name for name in (*needed, *plots) if not (made / name).exists()]:
        raise UserError(f"{made / missing[0]} is missing; evaluate the model first")
    commit = _git(made, "rev-parse", "HEAD")
    if changed := _git(made, "diff", "HEAD", "--name-only", "--", *MAY_DIFFER):
        raise UserError(f"{made}: {changed.split()[0]} is not as in its commit; commit it, and make the models of that")
    with new_folder(released) as draft:
        for model, item in zip(models, items, strict=True):
            folder = draft / model.name
            shutil.copytree(model, folder)
            halve(folder / WEIGHTS)
            for weights in sorted(folder.rglob("*.safetensors")):
                if weights != folder / WEIGHTS:
                    if not (source := shared.get(file_digest(weights))):
                        raise UserError(f"{model / weights.relative_to(folder)}: not of {foundation}")
                    weights.unlink()
                    # The draft lies beside the folder that it becomes.
                    weights.symlink_to(os.path.relpath(source.absolute(), weights.parent.absolute()))
            scores = json.loads((made / f"metrics/evaluate-{item}.json").read_text())
            card = (folder / "README.md").read_text()
            (folder / "README.md").write_text(f"{card}\n{_scores(scores, commit)}")
            write_digests(folder)
        for name in needed:
            (draft / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(made / name, draft / name)
        for name in plots:
            shutil.copytree(made / name, draft / name)
        (draft / "README.md").write_text(README.format(commit=commit))
    return [released / model.name for model in models]


def _git(checkout: Path, *ask: str) -> str:
    told = subprocess.run(["git", *ask], cwd=checkout, capture_output=True, text=True, check=False)
    if told.returncode:
        raise UserError(f"{checkout}: no checkout of git's, with a commit")
    return told.stdout.strip()


def halve(weights: Path) -> None:
    """Keeps a file of weights in half precision, in its place."""
    tensors = {name: tensor.to(torch.float16) for name, tensor in load_file(weights).items()}
    weights.unlink()
    save_file(tensors, weights, metadata={"format": "pt"})


def _scores(scores: Mapping[str, object], commit: str) -> str:
    rows = "".join(f"| `{name}` | {value:.4g} |\n" for name, value in scores.items() if isinstance(value, float))
    return f"## Scores\n\nOn the test split, one seed; made by commit `{commit}`.\n\n| | |\n|---|---|\n{rows}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m infra.release CHECKOUT, the one in which the models were made")
    try:
        for one in run(Path(sys.argv[1])):
            print(one)
    except UserError as error:
        print(f"m2m: {error}", file=sys.stderr)
        sys.exit(2)
