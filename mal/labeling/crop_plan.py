"""Groups boxes into batches of one crop size (`crop_sizes`).

An object of 40 px gains nothing from a crop of 512 px, which only enlarges it. The crop size of a
box follows from the longer side of its window, and a batch has one crop size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch.utils.data import Dataset

from mal.data.batch import CropBatch
from mal.data.crop_dataset import PredictionCrops

MAX_WAITING_BOXES = 256
Item = tuple[int, int]
"""(crop size, position among the rows to predict)."""


class SizedCrops(Dataset[CropBatch | None]):
    """Prediction crops of several sizes: one `PredictionCrops` each, over the same boxes."""

    def __init__(self, crops_of_size: dict[int, PredictionCrops]) -> None:
        self.crops_of_size = crops_of_size

    def __getitem__(self, item: Item) -> CropBatch | None:
        crop_size, position = item
        return self.crops_of_size[crop_size][position]


class BatchPlan(Iterable[list[Item]]):
    """The batches of `plan_batches`, computed on each iteration.

    The loader and its reader both iterate: a list for a million boxes would take 200 MiB.
    """

    def __init__(self, crops_of_size: dict[int, PredictionCrops], batch_size: int) -> None:
        self.crops_of_size = crops_of_size
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[Item]]:
        return plan_batches(self._crop_size_of_each_box(), self.batch_size)

    def _crop_size_of_each_box(self) -> Iterator[int]:
        sizes = sorted(self.crops_of_size)
        crops = self.crops_of_size[sizes[0]]
        for index in crops.indices:
            if len(sizes) == 1:
                yield sizes[0]
            else:
                x0, y0, x1, y1 = crops.window_of(int(index))
                yield crop_size_for(max(x1 - x0, y1 - y0), sizes)


def crop_size_for(window_side_px: int, crop_sizes: Sequence[int]) -> int:
    """Return the smallest crop that does not shrink the window, or the largest."""
    enough = [size for size in crop_sizes if size >= window_side_px]
    return min(enough) if enough else max(crop_sizes)


def plan_batches(
    crop_size_of_box: Iterable[int], batch_size: int, max_waiting: int = MAX_WAITING_BOXES
) -> Iterator[list[Item]]:
    """Yield batches of one crop size, each box once.

    A box waits for at most `max_waiting` later ones, so that its image stays decoded and masks can
    be returned in the order of the boxes with bounded memory.
    """
    waiting: dict[int, list[Item]] = {}
    for position, crop_size in enumerate(crop_size_of_box):
        waiting.setdefault(crop_size, []).append((crop_size, position))
        for size, items in list(waiting.items()):
            if len(items) == batch_size or position - items[0][1] >= max_waiting:
                yield waiting.pop(size)
    yield from waiting.values()
