"""One seed for everything that draws, and one place that sets the processor up."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from recsys.losses.softmax import rounded_products

Precision = Literal["float32", "bf16"]


def seed_everything(seed: int) -> None:
    """Seed torch's generators; the loader's draws are seeded by (seed, epoch) on their own.

    Args:
        seed: Any non-negative integer.
    """
    torch.manual_seed(seed)


@contextmanager
def in_precision(precision: Precision, device: torch.device | str = "cpu") -> Iterator[None]:
    """Compute losses in a precision for a while; weights and sums are float32 in any.

    Args:
        precision: ``float32`` is exact. ``bf16`` rounds the factors of the full softmax's products,
            the part of a step where it pays on a CPU that multiplies bfloat16; on a GPU the layers
            run under bfloat16 autocast too.
        device: Where the losses are computed.

    Yields:
        Nothing.
    """
    rounds, kind = precision == "bf16", torch.device(device).type
    layers = torch.autocast(kind, torch.bfloat16, enabled=rounds and kind == "cuda")
    with rounded_products(rounds), layers:
        yield


def keep_freed_memory() -> bool:
    """Ask the C library to keep freed memory for the next step instead of returning it.

    A training step frees and takes the same few large blocks over and over; returning them to the
    system costs a page fault a page on the next use. Does nothing off Linux's glibc.

    Returns:
        Whether the request was understood.
    """
    if not sys.platform.startswith("linux"):
        return False
    m_trim_threshold, m_mmap_max = -1, -4
    try:
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(m_mmap_max, 0)) and bool(mallopt(m_trim_threshold, 2**31 - 1))
    except AttributeError:
        return False
