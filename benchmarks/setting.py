"""Where and on what is timed: a device, and networks of a size."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.rows import Kind, Row
from m2m.diffusion.stable_diffusion import image_size
from m2m.evaluation.efficiency import Clock, in_turn
from m2m.params import Precision, Variant
from m2m.workers import ALONE, Workers


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One device and one foundation folder."""

    device: str
    foundation: Path
    precision: Precision
    steps: int = 25
    """Of denoising."""
    sets: int = 4
    """Drawn at once, or in a shard."""
    sets_per_step: Mapping[Variant, int]
    """Trained on."""
    set_size: int
    repeats: int

    @property
    def dtype(self) -> torch.dtype:
        """Of what is drawn with."""
        return getattr(torch, self.precision)  # type: ignore[no-any-return]

    @property
    def stable_diffusion(self) -> Path:
        return self.foundation / "stable-diffusion"

    @property
    def pixels(self) -> int:
        return image_size(self.stable_diffusion)

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def kind(self) -> Kind:
        return "gpu" if self.on_gpu else "wall"

    def free(self) -> None:
        """Gives back the memory of networks that nobody holds any more."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def taken(self, work: Callable[[], object]) -> float:
        """Seconds until the device has done the work."""
        return Clock(self.device).taken(work)

    def seconds(self, *works: Callable[[], object]) -> list[float]:
        """Median seconds of each; they take turns."""
        taken = in_turn([partial(self.taken, work) for work in works], repeats=self.repeats)
        return [statistics.median(times) for times in taken]

    def faster(self, name: str, seconds: list[float], *, amounts: tuple[float, float], unit: str) -> Row:
        """A row of two rates, ours first."""
        ours, other = (amount / taken for amount, taken in zip(amounts, seconds, strict=True))
        return Row.of(name, ours, other, unit=unit, kind=self.kind)

    def workers(self) -> Workers:
        """As a stage has them: on a CPU one for each of torch's threads."""
        return ALONE if self.on_gpu else Workers(torch.get_num_threads())

    @contextmanager
    def as_in_a_stage(self) -> Iterator[None]:
        """Beside workers, the main thread has one of torch's threads only; what is not ours keeps all of them."""
        threads = torch.get_num_threads()
        torch.set_num_threads(threads if self.on_gpu else 1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
