"""What a device computes with, and where it lies.

On a CPU, weights begin where its kernels like them. Host and GPU work side by side: the host never waits for the GPU to
be told something, and hardly the GPU for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

ALIGNMENT = 64
"""Bytes; at a multiple of it begins all that torch itself allocates on a CPU."""
_CAPTURING = Lock()
"""One graph at a time is captured in a process, as torch demands; a server may draw in several threads."""


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """On which graphs of a device are captured: one, since libraries keep working memory for each that they saw."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def align(*networks: nn.Module | None) -> None:
    """Brings the weights of networks that were loaded to memory that torch allocated, where they are not; in place.

    Weights are mapped from a file, so they begin where its header happens to end, and that decides how a matrix times
    a vector is rounded: the same weights would draw other bits from another file, or before they were ever saved.
    """
    for network in networks:
        for tensor in (*network.parameters(), *network.buffers()) if network is not None else ():
            if tensor.is_cpu and tensor.data_ptr() % ALIGNMENT:
                tensor.data = tensor.data.clone()  # of the same strides; whoever shares the parameter sees it move


def sent(numbers: Sequence[Any], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A small tensor on its way to a device. `torch.tensor` would wait until a GPU has done all that it was given."""
    tensor = torch.tensor(numbers, dtype=dtype, device="cpu")
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Replayed:
    """A function of tensors that is called over and over with equal shapes; on a GPU, a CUDA graph repeats its work.

    To launch the kernels of a network one by one takes a host longer than a GPU takes to run those of a small image.
    The first call is made as it is, the second is captured, all later ones are one launch. The same kernels run on
    the same numbers, so the results are the same to the bit.

    The function must be on one device, wait for nothing, and read only its arguments and tensors that stay in place.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._warm = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._output: Tensor | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        if not inputs[0].is_cuda or not self._warm:
            self._warm = True
            return self._function(*inputs)
        if self._output is None or self._graph is None:
            self._inputs = tuple(tensor.clone() for tensor in inputs)
            self._graph = torch.cuda.CUDAGraph()
            device = inputs[0].device
            # Other threads, which make the next examples, may go on with what they do.
            capture = torch.cuda.graph(self._graph, stream=_stream(device), capture_error_mode="thread_local")
            with _CAPTURING, torch.cuda.device(device), capture:
                self._output = self._function(*self._inputs)
        for place, tensor in zip(self._inputs, inputs, strict=True):
            place.copy_(tensor)
        self._graph.replay()
        return self._output.clone()  # the next replay overwrites it, and schedulers remember predictions
