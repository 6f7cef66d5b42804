"""Divides the items of a task among the ranks and merges their results in order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mal.distributed.group import gather_values
from mal.distributed.workers import Worker
from mal.runtime import Interrupted

MAX_BLOCK = 256

Result = TypeVar("Result")


def share_of(items: NDArray[np.int64], worker: Worker) -> NDArray[np.int64]:
    """Return the rank's share of N items: every n-th block, so that an image stays on one rank."""
    block = _block_size(len(items), worker.num_ranks)
    rank_N = np.arange(len(items)) // block % worker.num_ranks
    return np.asarray(items[rank_N == worker.rank])


def merge_shares(
    results: Iterator[Result],
    num_items: int,
    worker: Worker,
    *,
    encode: Callable[[Result], Any],
    decode: Callable[[Any], Result],
) -> Iterator[Result]:
    """Yield the results of all ranks on every rank, in the order of the items.

    Args:
        results: Results of this rank's share, in the order of the share.
        num_items: Number of items of all ranks.
        worker: This rank.
        encode: Converts a result to a JSON value.
        decode: Converts a JSON value to a result.

    Raises:
        Interrupted: A rank was interrupted at this block or before; raised on all ranks.
    """
    if worker.num_ranks == 1:
        yield from results
        return
    block = _block_size(num_items, worker.num_ranks)
    for _ in range(math.ceil(num_items / (block * worker.num_ranks))):
        for signal_number, values in gather_values(_next_block(results, block, encode)):
            if signal_number:
                raise Interrupted(signal_number)
            yield from map(decode, values)


def _next_block(
    results: Iterator[Result], block: int, encode: Callable[[Result], Any]
) -> tuple[int, list[Any]]:
    """Return the signal that stopped this rank, or 0, and its next results."""
    try:
        return 0, [encode(result) for result in itertools.islice(results, block)]
    except Interrupted as interrupt:
        return interrupt.signal_number, []


def _block_size(num_items: int, num_ranks: int) -> int:
    return max(1, min(MAX_BLOCK, math.ceil(num_items / num_ranks)))
