"""Many-to-many image generation with auto-regressive diffusion models (Shen et al., 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m2m.models.unet import ImageSetUNet
    from m2m.pipeline import M2MPipeline

__version__ = "0.1.0"
__all__ = ["ImageSetUNet", "M2MPipeline", "__version__"]


def __getattr__(name: str) -> object:
    """Imports the heavy names only when they are asked for: `import m2m` stays light."""
    if name == "M2MPipeline":
        from m2m.pipeline import M2MPipeline

        return M2MPipeline
    if name == "ImageSetUNet":
        from m2m.models.unet import ImageSetUNet

        return ImageSetUNet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
