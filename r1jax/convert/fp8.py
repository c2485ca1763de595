"""DeepSeek's FP8 weights: float8_e4m3fn, with a float32 factor per block of 128 x 128 (``weight_scale_inv``).

The last blocks may be ragged: R1's ``kv_a_proj_with_mqa`` has 576 rows and 5 rows of factors. So the block's size is the
config's ``weight_block_size``; a quotient of the shapes would be another.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np

NAME = "F8_E4M3"  # in safetensors
FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
_VALUES = np.arange(256, dtype=np.uint8).view(FP8).astype(np.float32)  # a look-up is faster than the cast
_LARGEST = np.float32(448)

Block = tuple[int, int]


def scale_shape(shape: tuple[int, ...], block: Block) -> tuple[int, ...]:
    """The shape of the factors of a weight [..., out, in]."""
    return (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))


def dequantize(q: np.ndarray, scale_inv: np.ndarray, block: Block = (128, 128), dtype: np.dtype = np.float32) -> np.ndarray:
    """``q * scale_inv`` in float32, then in ``dtype``.

    Args:
      q: float8_e4m3fn[..., out, in].
      scale_inv: float32[..., ceil(out / block[0]), ceil(in / block[1])].

    Raises:
      ValueError: the factors do not fit.
    """
    if scale_inv.shape != scale_shape(q.shape, block):
        raise ValueError(f"scales of shape {scale_inv.shape} do not fit a weight {q.shape} in blocks of {block}")
    out = np.empty(q.shape, dtype)

    def band(lead, i, rows):
        out[lead][rows] = _VALUES[q[lead][rows].view(np.uint8)] * _columns(scale_inv[lead][i], block, q)

    _each_band(band, q.shape, block)
    return out


def quantize(w: np.ndarray, block: Block = (128, 128)) -> tuple[np.ndarray, np.ndarray]:
    """(q, scale_inv) as ``dequantize`` takes them: a block's largest magnitude becomes 448. A block of zeros has factor 1.

    Args:
      w: [..., out, in], any float dtype.
    """
    q, scale_inv = np.empty(w.shape, FP8), np.empty(scale_shape(w.shape, block), np.float32)
    starts = np.arange(0, w.shape[-1], block[1])

    def band(lead, i, rows):
        values = w[lead][rows].astype(np.float32)
        largest = np.maximum.reduceat(np.abs(values).max(0), starts)
        scale_inv[lead][i] = np.where(largest > 0, largest / _LARGEST, 1)
        q[lead][rows] = values / _columns(scale_inv[lead][i], block, w)

    _each_band(band, w.shape, block)
    return q, scale_inv


def _each_band(work: Callable[[tuple[int, ...], int, slice], None], shape: tuple[int, ...], block: Block) -> None:
    """Calls ``work(leading index, number, rows)`` for every row of blocks, on all cores."""
    bands = [
        (lead, i, slice(i * block[0], (i + 1) * block[0]))
        for lead in np.ndindex(shape[:-2])
        for i in range(-(-shape[-2] // block[0]))
    ]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda band: work(*band), bands))  # a list, so that an error is raised here


def _columns(scales: np.ndarray, block: Block, w: np.ndarray) -> np.ndarray:
    """A factor per column from one per block."""
    return np.repeat(scales, block[1])[: w.shape[-1]]
