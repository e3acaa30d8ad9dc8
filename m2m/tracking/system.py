"""What a run asks of the machine, for MLflow's page of system metrics."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import psutil

SECONDS_BETWEEN_SAMPLES = 10.0
MEGABYTE = 2**20


@contextmanager
def sampling(log: Callable[..., None], *, interval: float = SECONDS_BETWEEN_SAMPLES) -> Iterator[None]:
    """Logs processor, memory and GPU use in the background; the step is the seconds since the start."""
    done, started = threading.Event(), time.monotonic()

    def work() -> None:
        psutil.cpu_percent()  # the first call only starts the measurement
        while not done.wait(interval):
            try:
                log(sample(), step=int(time.monotonic() - started))
            except OSError as error:
                logging.getLogger("m2m.tracking").warning("tracking: no more system metrics: %s", error)
                return

    thread = threading.Thread(target=work, name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def sample() -> Mapping[str, float]:
    """The state of the machine now, under MLflow's own names where it has one."""
    memory = psutil.virtual_memory()
    values = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / MEGABYTE,
        "system/system_memory_usage_percentage": memory.percent,
        "system/process_memory_megabytes": psutil.Process().memory_info().rss / MEGABYTE,
    }
    torch = sys.modules.get("torch")  # whoever computes on a GPU has imported it
    if torch is not None and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(device)
            values[f"system/gpu_{device}_memory_usage_megabytes"] = (total - free) / MEGABYTE
            values[f"system/gpu_{device}_memory_usage_percentage"] = 100 * (total - free) / total
    return values
