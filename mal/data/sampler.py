"""The order of training items.

Shape letters: N items of all ranks, I images of the set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler


@dataclass(frozen=True)
class ImagePools:
    """Groups of items that are shuffled together: images that a process can keep decoded.

    If items were shuffled over the whole set, an image would be decoded once for each of its boxes.
    The price is less randomness: the images are shuffled anew each epoch, so that every epoch has
    other pools, but all boxes of a batch come from the K images of one pool. Of the B - 1 others in
    a batch, about (B - 1) / K share a box's image. 256 MiB hold 290 images of 640 x 480, where this
    is close to 0, but only 7 images of 4000 x 3000.

    Attributes:
        image_index_N: Index of each item's image.
        num_bytes_I: Size of each decoded image.
        max_bytes: Most that the images of a pool take; a larger image is a pool of its own.
    """

    image_index_N: NDArray[np.int64]
    num_bytes_I: NDArray[np.int64]
    max_bytes: int

    def images_in_random_order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return all items, those of an image next to each other."""
        rank_I = rng.permutation(len(self.num_bytes_I))
        return np.argsort(rank_I[self.image_index_N], kind="stable")

    def shuffled_within(
        self, share: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Cut items that are in the order of their images into pools, and shuffle each pool."""
        image_index = self.image_index_N[share]
        first_items = np.flatnonzero(np.diff(image_index, prepend=-1))
        pool_of_image, num_bytes = [0], 0
        for image_bytes in self.num_bytes_I[image_index[first_items]].tolist():
            is_full = num_bytes > 0 and num_bytes + image_bytes > self.max_bytes
            num_bytes = image_bytes if is_full else num_bytes + image_bytes
            pool_of_image.append(pool_of_image[-1] + is_full)
        pool_of_item = np.repeat(pool_of_image[1:], np.diff(first_items, append=len(share)))
        return share[np.lexsort((rng.random(len(share)), pool_of_item))]


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, position) in an order that depends on seed and epoch alone.

    Attributes:
        num_skipped: Items of the current epoch that a resumed run has already seen.
        pools: Groups that are shuffled; None: the whole set is one.
    """

    def __init__(self, num_items: int, *, seed: int, rank: int = 0, num_ranks: int = 1) -> None:
        self.num_items = num_items
        self.seed = seed
        self.rank = rank
        self.num_ranks = num_ranks
        self.epoch = 0
        self.num_skipped = 0
        self.pools: ImagePools | None = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass; the trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.num_items / self.num_ranks)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        skipped, self.num_skipped = self.num_skipped, 0
        for position in self._order()[skipped:].tolist():
            yield self.epoch, position

    def _order(self) -> NDArray[np.int64]:
        """Return this rank's items; a few repeat, so that all ranks have the same number."""
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.pools is None:
            order = np.resize(rng.permutation(self.num_items), len(self) * self.num_ranks)
            return order[self.rank :: self.num_ranks]
        # A rank gets whole images, so that no other rank decodes them too.
        order = np.resize(self.pools.images_in_random_order(rng), len(self) * self.num_ranks)
        share = order[self.rank * len(self) : (self.rank + 1) * len(self)]
        return self.pools.shuffled_within(share, rng)
