"""``m2m render``: people's own meshes, rendered as the stage ``views`` reads them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from m2m.data.folder_sets import TO_OPENCV
from m2m.errors import UserError
from m2m.files import new_file
from m2m.progress import progress
from m2m.seeds import derive
from m2m.world.cameras import Camera

_log = logging.getLogger(__name__)


def run(meshes: Sequence[Path], *, out: Path, views: int, size: int, seed: int) -> list[str]:
    """Makes a folder for each mesh, named like its file: ``000.png`` (RGBA), ``000.npy``, ``001.png`` …

    Files of one name get those of their folders before it, as many as tell them apart: ``shoe-meshes-model``. The
    cameras are random, a function of seed and name. Their matrices are in Blender's convention, as those of the
    renderings that Zero123 published.

    Args:
        views: pictures of each mesh.
        size: pixels of a side.

    Returns:
        of each mesh that is left out, why.

    Raises:
        UserError: no mesh is given, one is given twice, none can be rendered, or the disk refuses.
    """
    if not meshes:
        raise UserError("no meshes given: m2m render chair.glb table.obj --out data/my_views --views 12")
    named = _named(meshes)
    from m2m.world.meshes import photograph_mesh  # VTK takes a while to import

    bad: list[str] = []
    with progress(len(named), "render", unit="meshes") as advance:
        for name, path in named.items():
            rng = np.random.default_rng(derive(seed, "cameras", name))
            cameras = [Camera.draw(rng) for _ in range(views)]
            try:
                pictures = photograph_mesh(path, cameras, size)
            except UserError as error:
                _log.warning("%s", error)
                bad.append(str(error))
            else:
                for view, (picture, camera) in enumerate(zip(pictures, cameras, strict=True)):
                    with new_file(out / name / f"{view:03}.png") as draft:
                        Image.fromarray(picture).save(draft, "PNG")
                    with new_file(out / name / f"{view:03}.npy") as draft, draft.open("wb") as file:
                        # The flip of two axes is its own inverse.
                        np.save(file, TO_OPENCV["blender"] @ camera.matrix(), allow_pickle=False)
            advance()
    if len(bad) == len(named):
        raise UserError(f"no mesh could be rendered: {bad[0]}")
    return bad


def _named(meshes: Sequence[Path]) -> dict[str, Path]:
    """The meshes by the names of their folders below ``out``."""
    alike: dict[str, list[Path]] = {}
    for path in meshes:
        alike.setdefault(path.stem, []).append(path.absolute())
    named: dict[str, Path] = {}
    for path in meshes:
        others = alike[path.stem]
        same_format = len({other.suffix for other in others}) == 1
        labels = [[*other.parts[1:-1], other.stem if same_format else other.name.replace(".", "-")] for other in others]
        count = 1
        while len({tuple(label[-count:]) for label in labels}) < len(others) and count < max(map(len, labels)):
            count += 1
        name = "-".join(labels[others.index(path.absolute())][-count:])
        if name in named:
            raise UserError(
                f"{path}: {named[name]} would have the same folder, {name}; give each mesh once, or rename one"
            )
        named[name] = path
    return named
