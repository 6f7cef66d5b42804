"""Label Studio's brush masks: run lengths of RGBA values, packed in bits (`@thi.ng/rle-pack`).

First 32 bits: how many values follow. Then word size - 1 (5 bits) and four lengths - 1 (4 bits
each). Each run: one bit (1: one value repeated, 0: that many values), two bits that choose a
length, the run's length - 1 in that many bits, and the value or values of word size bits. The
alpha value of a pixel is its mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_NUM_CHANNELS = 4


def mask_from_brush(rle: Sequence[int], height: int, width: int) -> NDArray[np.uint8]:
    """Decode a mask to 0 and 1, shape (height, width).

    Raises:
        ValueError: The code is broken, or of another size.
    """
    data = bytes(rle)
    bits = _Bits(data)
    num_values = bits.take(32)
    if num_values != height * width * _NUM_CHANNELS:
        raise ValueError(
            f"a brush mask of {num_values // _NUM_CHANNELS} pixels, not {height * width}"
        )
    word_size = bits.take(5) + 1
    lengths = [bits.take(4) + 1 for _ in range(4)]
    values = np.zeros(num_values, np.uint8)
    at = 0
    while at < num_values:
        is_run = bits.take(1)
        end = at + 1 + bits.take(lengths[bits.take(2)])
        if end > num_values:
            raise ValueError("a brush mask with too many values")
        if is_run:
            values[at:end] = bits.take(word_size) & 0xFF
        else:
            values[at:end] = [bits.take(word_size) & 0xFF for _ in range(end - at)]
        at = end
    return (values.reshape(height, width, _NUM_CHANNELS)[:, :, 3] > 0).astype(np.uint8)


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, count: int) -> int:
        first, last = self._position // 8, (self._position + count + 7) // 8
        if last > len(self._data):
            raise ValueError("a brush mask that ends too early")
        number = int.from_bytes(self._data[first:last], "big")
        self._position += count
        return (number >> (last * 8 - self._position)) & ((1 << count) - 1)
