"""One seed for everything that draws, and one place that sets the processor up."""

import ctypes
import sys
from typing import Literal

import torch

Precision = Literal["float32", "bf16"]


def seed_everything(seed: int) -> None:
    """Seed torch's generators; the loader's draws are seeded by (seed, epoch) on their own.

    Args:
        seed: Any non-negative integer.
    """
    torch.manual_seed(seed)


def set_precision(precision: Precision) -> None:
    """Choose how float32 matrix products are computed on the CPU.

    Args:
        precision: ``bf16`` rounds the factors to bfloat16 and sums in float32, in hardware where
            the processor has it (AMX, AVX-512 BF16); weights, activations and everything but
            products stay float32. ``float32`` is exact.
    """
    torch.backends.mkldnn.matmul.fp32_precision = (  # type: ignore[attr-defined]
        "bf16" if precision == "bf16" else "ieee"
    )


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
