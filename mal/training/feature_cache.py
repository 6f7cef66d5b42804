"""Features of a frozen backbone, computed once for a fixed number of crops and kept on disk.

A frozen backbone computes the same features for the same crop in every epoch; a step without it
takes a hundredth of the time. The crops are drawn once, so variety comes from their number
(`train.cached_crops`), mirroring and colours.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from mal.data.batch import CropBatch, collate_crops, normalize_image
from mal.data.crop_dataset import TrainingCrops, augment, points_in_window
from mal.data.crops import window_from_unit_box, xyxy_from_xywh
from mal.errors import SpecError
from mal.model.backbone import describe_backbone
from mal.model.network import MALNetwork
from mal.progress import track
from mal.spec import spec_as_dict
from mal.spec.experiment import ExperimentSpec
from mal.storage.cache import key_of
from mal.storage.limited import limited_folder

log = logging.getLogger(__name__)

FEATURE_BATCH_SIZE = 8
FORMAT_VERSION = 2
GIB = 2**30
ROW_BYTES = 64  # upper bound of box, area, row, and their part of the files' headers
# Keys of the spec's `dataset` section that decide how unaugmented crops are drawn.
DRAWING_KEYS = ("crop_size", "window_rate", "box_jitter")


class CachedCrops(Dataset[CropBatch]):
    """Crops with their features, read from memory-mapped files; items as (epoch, position).

    Points are not stored: the features stay valid while points are still being added.
    """

    def __init__(self, folder: Path, crops: TrainingCrops) -> None:
        self.arrays = {
            path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))
        }
        self.boxes = crops.reader.boxes
        self.photometric_rate = crops.spec.dataset.photometric_rate
        self.seed = crops.seed

    def __len__(self) -> int:
        return len(self.arrays["index_B"])

    def __getitem__(self, key: tuple[int, int]) -> CropBatch:
        epoch, position = key
        rng = np.random.default_rng([self.seed, epoch, position])
        item = {
            name: torch.from_numpy(np.array(array[position : position + 1]))
            for name, array in self.arrays.items()
        }
        if self.boxes.points is not None:
            item["point_BK3"] = self._points_of(position)
        return augment(CropBatch(**item), self.photometric_rate, rng)

    def _points_of(self, position: int) -> torch.Tensor:
        index = int(self.arrays["index_B"][position])
        image = self.boxes.image_of(index)
        box_xyxy = xyxy_from_xywh(self.boxes.box_xywh_N4[index])
        unit_box = np.asarray(self.arrays["unit_box_B4"][position])
        window = window_from_unit_box(box_xyxy, unit_box, image.width, image.height)
        points_1K3 = points_in_window(self.boxes, index, window)
        assert points_1K3 is not None
        return points_1K3


class _DrawnCrops(Dataset[CropBatch]):
    """The fixed crops, each box in turn."""

    def __init__(self, crops: TrainingCrops, num_crops: int) -> None:
        self.crops = crops
        rounds = -(-num_crops // len(crops))
        order = [
            (round_, int(position))
            for round_ in range(rounds)
            for position in np.random.default_rng([crops.seed, round_]).permutation(len(crops))
        ]
        # In the order of the file, an image is decoded once for all its boxes.
        self.keys = sorted(order[:num_crops], key=lambda key: (key[1], key[0]))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, position: int) -> CropBatch:
        """Return an unaugmented crop; a box with a broken image is replaced by the next."""
        round_, box = self.keys[position]
        rng = np.random.default_rng([self.crops.seed, round_, box])
        return self.crops.cut_readable(box, rng)


@contextlib.contextmanager
def cached_crop_features(
    network: MALNetwork, crops: TrainingCrops, num_crops: int, device: torch.device
) -> Iterator[CachedCrops]:
    """Yield `num_crops` crops with features, computed unless an equal run has cached them.

    They stay on disk while the block runs, and after it until `train.feature_cache_gib` is full.

    Raises:
        SpecError: They take more than that.
        StorageError: The cache folder cannot be written, or is full of what other runs use.
    """
    if not describe_backbone(network.arch).can_cache_features:
        raise SpecError(
            f"train.cached_crops must be 0 with {network.arch}, got {num_crops}: its feature maps "
            "have different channels. Set train.cached_crops=0."
        )
    num_bytes = num_crops * bytes_per_crop(network, crops.spec)
    limit_bytes = int(crops.spec.train.feature_cache_gib * GIB)
    if num_bytes > limit_bytes:
        raise SpecError(
            f"train.feature_cache_gib must be at least {num_bytes / GIB:.2f} for {num_crops} "
            f"cached crops of {crops.spec.dataset.crop_size} px, got {limit_bytes / GIB:.2f}. "
            "Raise it, or lower train.cached_crops or dataset.crop_size."
        )

    def fill(folder: Path) -> None:
        # Weights that are moved inside inference mode cannot be trained.
        network.to(device).eval()
        _compute(network, _DrawnCrops(crops, num_crops), folder, device)

    key = _content_key(network, crops, num_crops)
    with limited_folder(key, fill, num_bytes=num_bytes, limit_bytes=limit_bytes) as folder:
        yield CachedCrops(folder, crops)


def bytes_per_crop(network: MALNetwork, spec: ExperimentSpec) -> int:
    """Return the size of a crop on disk: features, image, true mask, box."""
    size = spec.dataset.crop_size
    num_tokens = (size // network.stride_px) ** 2
    features = sum(network.backbone.feature_channels) * num_tokens * torch.half.itemsize
    num_planes = 3 + (spec.train.supervision == "mask")
    return features + num_planes * size**2 + ROW_BYTES


@torch.inference_mode()
def _compute(network: MALNetwork, drawn: _DrawnCrops, folder: Path, device: torch.device) -> None:
    num_workers = drawn.crops.spec.dataset.num_workers_per_gpu
    loader = DataLoader(
        drawn, FEATURE_BATCH_SIZE, num_workers=num_workers, collate_fn=collate_crops
    )
    arrays: dict[str, NDArray[np.generic]] = {}
    first = 0
    for batch in track(loader, "features", len(loader), unit="batches"):
        feature_maps = network.encode(normalize_image(batch.image_BCSS.to(device)))
        batch.features_BLDhw = torch.stack(feature_maps, dim=1).half().cpu()
        for name, value in vars(batch).items():
            if value is None or name == "point_BK3":
                continue
            if name not in arrays:
                shape = (len(drawn), *value.shape[1:])
                arrays[name] = np.lib.format.open_memmap(
                    folder / f"{name}.npy", mode="w+", dtype=value.numpy().dtype, shape=shape
                )
            arrays[name][first : first + len(batch)] = value.numpy()
        first += len(batch)


def _content_key(network: MALNetwork, crops: TrainingCrops, num_crops: int) -> str:
    """Hash what the features depend on: weights, boxes, images and how crops are drawn."""
    weights = hashlib.sha256()
    for tensor in network.backbone.state_dict().values():
        weights.update(tensor.cpu().contiguous().numpy().tobytes())
    boxes = crops.reader.boxes
    rows = crops.indices
    files = [crops.reader.path_of(int(i)).stat() for i in np.unique(boxes.image_index_N[rows])]
    spec = spec_as_dict(crops.spec)
    train_keys = ("margin_rate", "supervision")
    facts = {
        "version": FORMAT_VERSION,
        "boxes": hashlib.sha256(boxes.box_xywh_N4[rows].tobytes()).hexdigest(),
        "rows": hashlib.sha256(rows.tobytes()).hexdigest(),
        "masks": _mask_key(crops) if crops.spec.train.supervision == "mask" else "",
        "images": [(file.st_size, file.st_mtime_ns) for file in files],
        "dataset": {key: spec["dataset"][key] for key in DRAWING_KEYS},
        "train": {key: spec["train"][key] for key in train_keys},
        "feature_channels": network.backbone.feature_channels,
        "num_crops": num_crops,
        "seed": crops.seed,
    }
    return key_of(weights.hexdigest(), json.dumps(facts, sort_keys=True))


def _mask_key(crops: TrainingCrops) -> str:
    segmentations = crops.reader.boxes.segmentations
    assert segmentations is not None
    digest = hashlib.sha256()
    for index in crops.indices.tolist():
        digest.update(json.dumps(segmentations[index]).encode())
    return digest.hexdigest()
