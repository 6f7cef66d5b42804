"""Draw a small labelled data set, so that MAL can be tried without downloading anything.

The pictures are made so that boxes, colours and edges alone do not give the masks away: objects
fill less than half of their box, carry a texture whose colours also occur in the ground, and lie
among strokes and blobs that belong to none.

Shape letters: H, W = picture rows, columns. Names ending in `_SS` lie on the supersampled grid.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco_mask

from mal.errors import MalError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

IMAGE_SIZES_PX = (144, 168, 192)
MIN_NUM_IMAGES = 2
VAL_SHARE = 0.2
NUM_OBJECTS = (3, 5)
RADIUS_PX = (18.0, 45.0)
SUPERSAMPLING = 3
# An object that others hide further than this would be a few stray pixels with a misleading box.
MIN_VISIBLE_SHARE = 0.85
POSITION_TRIES = 30
MIN_SIDE_PX = 8


@dataclass(frozen=True)
class DemoDataset:
    """The paths of a generated data set."""

    image_dir: Path
    train_file: Path
    val_file: Path


@dataclass(frozen=True)
class Picture:
    """One drawn picture with the pixels of each object that can be seen."""

    image_rgb: npt.NDArray[np.uint8]
    """Shape (H, W, 3)."""
    masks: tuple[BoolArray, ...]
    """Visible pixels of each object, each (H, W), never empty."""
    category_ids: tuple[int, ...]


def generate_demo_dataset(output_dir: Path, *, num_images: int, seed: int) -> DemoDataset:
    """Write `images/`, `train.json` and `val.json` (COCO with true masks) to a new folder.

    The folder is written under another name beside it, and then renamed.
    Picture i depends on the seed and on i only: a larger set begins as a smaller one does.

    Raises:
        MalError: The folder holds something already, or the pictures do not suffice for two splits.
    """
    if num_images < MIN_NUM_IMAGES:
        raise MalError(
            f"num_images must be at least {MIN_NUM_IMAGES}, got {num_images}. "
            "Ask for one picture to train on and one to evaluate at least."
        )
    if seed < 0:
        raise MalError(f"seed must be 0 or greater, got {seed}. Choose another seed.")
    _require_free_folder(output_dir)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    build_dir = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}-", dir=output_dir.parent))
    try:
        _write_dataset(build_dir, num_images=num_images, seed=seed)
        # mkdtemp makes private folders; other users of a volume read a data set too.
        build_dir.chmod(0o755)
        _rename(build_dir, output_dir)
    finally:
        shutil.rmtree(build_dir, ignore_errors=True)
    return DemoDataset(
        image_dir=output_dir / "images",
        train_file=output_dir / "train.json",
        val_file=output_dir / "val.json",
    )


def draw_picture(rng: np.random.Generator) -> Picture:
    """Draw a ground, distractors and several overlapping objects; later objects lie in front."""
    size_px = int(rng.choice(IMAGE_SIZES_PX))
    palette = _draw_palette(rng)
    canvas = _draw_ground(rng, palette, size_px)
    for _ in range(int(rng.integers(4, 9))):
        _paint_distractor(rng, canvas, palette)
    masks: list[BoolArray] = []
    category_ids: list[int] = []
    for _ in range(int(rng.integers(NUM_OBJECTS[0], NUM_OBJECTS[1] + 1))):
        category_id = int(rng.integers(len(SHAPES))) + 1
        posed = _pose_object(rng, SHAPES[category_id - 1][1], masks, size_px)
        if posed is None:
            continue
        coverage, mask = posed
        _blend(canvas, _draw_texture(rng, palette, size_px), coverage)
        masks = [earlier & ~mask for earlier in masks]
        masks.append(mask)
        category_ids.append(category_id)
    canvas += rng.normal(0.0, 0.02, canvas.shape)
    image_rgb = (np.clip(canvas, 0.0, 1.0) * 255).round().astype(np.uint8)
    return Picture(image_rgb=image_rgb, masks=tuple(masks), category_ids=tuple(category_ids))


def _require_free_folder(output_dir: Path) -> None:
    if output_dir.is_dir() and not any(output_dir.iterdir()):
        return
    if output_dir.exists() or output_dir.is_symlink():
        raise MalError(
            f"output_dir must be new or an empty folder, got {output_dir}. "
            "Choose another folder or empty this one."
        )


def _rename(build_dir: Path, output_dir: Path) -> None:
    try:
        # rename(2) replaces an empty folder but never one that was filled since the check.
        build_dir.replace(output_dir)
    except OSError as error:
        raise MalError(
            f"output_dir must be a folder that can be reposed, got {output_dir} ({error}). "
            "Choose a new folder on a writable disk."
        ) from error


def _write_dataset(build_dir: Path, *, num_images: int, seed: int) -> None:
    image_dir = build_dir / "images"
    image_dir.mkdir()
    num_val = max(1, round(num_images * VAL_SHARE))
    val_indices = _spread_indices(num_images, num_val)
    splits: dict[str, dict[str, Any]] = {"train": _empty_coco(), "val": _empty_coco()}
    for index in range(num_images):
        picture = draw_picture(np.random.default_rng([seed, index]))
        file_name = f"{index:05d}.png"
        Image.fromarray(picture.image_rgb).save(image_dir / file_name)
        coco = splits["val" if index in val_indices else "train"]
        _append_picture(coco, picture, index, file_name)
    for name, coco in splits.items():
        (build_dir / f"{name}.json").write_text(json.dumps(coco), encoding="utf-8")


def _spread_indices(num_images: int, num_val: int) -> frozenset[int]:
    return frozenset((k + 1) * num_images // num_val - 1 for k in range(num_val))


def _empty_coco() -> dict[str, Any]:
    return {
        "info": {"description": "MAL demo shapes, generated"},
        "categories": [{"id": k, "name": name} for k, (name, _) in enumerate(SHAPES, start=1)],
        "images": [],
        "annotations": [],
    }


def _append_picture(coco: dict[str, Any], picture: Picture, index: int, file_name: str) -> None:
    height, width = picture.image_rgb.shape[:2]
    image_id = index + 1
    coco["images"].append(
        {"id": image_id, "file_name": file_name, "width": width, "height": height}
    )
    objects = zip(picture.masks, picture.category_ids, strict=True)
    for order, (mask, category_id) in enumerate(objects):
        rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        counts = rle["counts"]
        coco["annotations"].append(
            {
                "id": image_id * 100 + order,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": [float(value) for value in coco_mask.toBbox(rle)],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": [height, width], "counts": _text(counts)},
            }
        )


def _text(counts: str | bytes) -> str:
    return counts if isinstance(counts, str) else counts.decode("ascii")


def _is_in_star(u: FloatArray, v: FloatArray) -> BoolArray:
    step = 2 * np.pi / 5
    angle = np.abs((np.arctan2(v, u) + step / 2) % step - step / 2)
    radius = np.hypot(u, v)
    inner = 0.48
    notch_u, notch_v = inner * np.cos(step / 2), inner * np.sin(step / 2)
    along, across = radius * np.cos(angle), radius * np.sin(angle)
    return np.asarray((1 - along) * notch_v - across * (1 - notch_u) > 0)


def _is_in_crescent(u: FloatArray, v: FloatArray) -> BoolArray:
    return np.asarray((np.hypot(u, v) < 1) & (np.hypot(u - 0.5, v) > 0.68))


def _is_in_cross(u: FloatArray, v: FloatArray) -> BoolArray:
    longer, shorter = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
    return np.asarray((longer < 1) & (shorter < 0.31))


def _is_in_ring(u: FloatArray, v: FloatArray) -> BoolArray:
    radius = np.hypot(u, v)
    return np.asarray((radius < 1) & (radius > 0.52))


def _is_in_arrow(u: FloatArray, v: FloatArray) -> BoolArray:
    shaft = (np.abs(v) < 0.32) & (u > -1) & (u < 0)
    head = (u >= 0) & (np.abs(v) < (1 - u) * 0.85)
    return np.asarray(shaft | head)


def _is_in_chevron(u: FloatArray, v: FloatArray) -> BoolArray:
    bend = u + 1.1 * np.abs(v)
    return np.asarray((np.abs(v) < 0.9) & (bend > -0.1) & (bend < 0.75))


Membership = Callable[[FloatArray, FloatArray], BoolArray]
# Each is given by the points (u, v) of a disc of radius about 1 that belong to it.
SHAPES: tuple[tuple[str, Membership], ...] = (
    ("star", _is_in_star),
    ("crescent", _is_in_crescent),
    ("cross", _is_in_cross),
    ("ring", _is_in_ring),
    ("arrow", _is_in_arrow),
    ("chevron", _is_in_chevron),
)


def _pose_object(
    rng: np.random.Generator,
    membership: Membership,
    earlier_masks: Sequence[BoolArray],
    size_px: int,
) -> tuple[FloatArray, BoolArray] | None:
    """Find a pose that leaves enough of every earlier object; None when the picture is too full."""
    for _ in range(POSITION_TRIES):
        coverage = _draw_coverage(rng, membership, size_px)
        mask = coverage > 0.5
        if _is_large_enough(mask) and all(_leaves_visible(mask, seen) for seen in earlier_masks):
            return coverage, mask
    return None


def _draw_coverage(rng: np.random.Generator, membership: Membership, size_px: int) -> FloatArray:
    """Draw a shape in a random pose: the share of every pixel that it covers, shape (H, W)."""
    # Even in the logarithm: small objects are as frequent as large ones.
    radius = float(np.exp(rng.uniform(*np.log(RADIUS_PX))))
    stretch, turn = rng.uniform(0.75, 1.0), rng.uniform(0, 2 * np.pi)
    centre = rng.uniform(0.8 * radius, size_px - 0.8 * radius, 2)
    # No shape reaches further than 1.3 radii: the rest of the picture need not be supersampled.
    top, left = np.maximum(np.floor(centre - 1.3 * radius), 0).astype(int)
    bottom, right = np.minimum(np.ceil(centre + 1.3 * radius), size_px).astype(int)
    y_SS = (np.arange(top * SUPERSAMPLING, bottom * SUPERSAMPLING) + 0.5) / SUPERSAMPLING
    x_SS = (np.arange(left * SUPERSAMPLING, right * SUPERSAMPLING) + 0.5) / SUPERSAMPLING
    dy, dx = y_SS[:, None] - centre[0], x_SS[None] - centre[1]
    u = (dx * np.cos(turn) + dy * np.sin(turn)) / radius
    v = (dy * np.cos(turn) - dx * np.sin(turn)) / (radius * stretch)
    cells = (bottom - top, SUPERSAMPLING, right - left, SUPERSAMPLING)
    coverage = np.zeros((size_px, size_px))
    coverage[top:bottom, left:right] = membership(u, v).reshape(cells).mean(axis=(1, 3))
    return coverage


def _is_large_enough(mask: BoolArray) -> bool:
    return int(mask.any(0).sum()) >= MIN_SIDE_PX and int(mask.any(1).sum()) >= MIN_SIDE_PX


def _leaves_visible(mask: BoolArray, earlier: BoolArray) -> bool:
    rest = earlier & ~mask
    return _is_large_enough(rest) and int(rest.sum()) >= MIN_VISIBLE_SHARE * int(earlier.sum())


def _draw_palette(rng: np.random.Generator) -> FloatArray:
    """Choose the six colours of a picture, dark to bright; ground and objects share them."""
    brightness = np.linspace(0.12, 0.88, 6)[:, None]
    return np.asarray(np.clip(brightness + rng.uniform(-0.2, 0.2, (6, 3)), 0.0, 1.0))


def _draw_ground(rng: np.random.Generator, palette: FloatArray, size_px: int) -> FloatArray:
    colours = palette[rng.permutation(len(palette))[:3]]
    canvas = np.broadcast_to(colours[0], (size_px, size_px, 3)).copy()
    for colour in colours[1:]:
        level = _smooth_noise(rng, size_px, num_cells=int(rng.integers(4, 8)))
        _blend(canvas, colour, 1 / (1 + np.exp(-12 * (level - 0.55))))
    return canvas + 0.08 * (_smooth_noise(rng, size_px, num_cells=size_px // 6) - 0.5)[..., None]


def _smooth_noise(rng: np.random.Generator, size_px: int, *, num_cells: int) -> FloatArray:
    cells = Image.fromarray(rng.uniform(0, 1, (num_cells, num_cells)).astype(np.float32))
    return np.asarray(cells.resize((size_px, size_px), Image.Resampling.BICUBIC), dtype=np.float64)


def _blend(canvas: FloatArray, colour: FloatArray, coverage: FloatArray) -> None:
    canvas += coverage[..., None] * (colour - canvas)


def _paint_distractor(rng: np.random.Generator, canvas: FloatArray, palette: FloatArray) -> None:
    """Paint a blob of one colour or a few parallel strokes: object colours without an object."""
    size_px = canvas.shape[0]
    colour = palette[rng.integers(len(palette))]
    centre_y, centre_x = rng.uniform(0, size_px, 2)
    turn = rng.uniform(0, 2 * np.pi)
    dy, dx = np.mgrid[0:size_px, 0:size_px] + 0.5
    along = (dx - centre_x) * np.cos(turn) + (dy - centre_y) * np.sin(turn)
    across = (dy - centre_y) * np.cos(turn) - (dx - centre_x) * np.sin(turn)
    length = rng.uniform(8, 22)
    if rng.uniform() < 0.5:
        distance = np.hypot(along / length, across / (length * rng.uniform(0.4, 0.9)))
        coverage = np.clip((1 - distance) * length, 0.0, 1.0)
    else:
        gap = rng.uniform(9, 14)
        in_group = (np.abs(along) < length) & (np.abs(across) < 1.5 * gap)
        from_stroke = np.abs((across + gap / 2) % gap - gap / 2)
        coverage = np.clip(1.8 - from_stroke, 0.0, 1.0) * in_group
    _blend(canvas, colour, coverage)


def _stripes(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.asarray(np.sin(a))


def _checks(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.asarray(1.6 * np.sin(a) * np.sin(b))


def _dots(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.asarray(np.sin(a) + np.sin(b) - 0.4)


# Each is a wave of about -1 to 1 over two phases at right angles.
TEXTURES = (_stripes, _checks, _dots)


def _draw_texture(rng: np.random.Generator, palette: FloatArray, size_px: int) -> FloatArray:
    """Draw a regular pattern of two clearly different colours of the palette, shape (H, W, 3)."""
    turn, period = rng.uniform(0, np.pi), rng.uniform(4.5, 7.0)
    y, x = np.mgrid[0:size_px, 0:size_px] + rng.uniform(0, period)
    a = 2 * np.pi * (x * np.cos(turn) + y * np.sin(turn)) / period
    b = 2 * np.pi * (y * np.cos(turn) - x * np.sin(turn)) / period
    pattern = TEXTURES[rng.integers(len(TEXTURES))]
    share = np.clip(0.5 + 1.5 * pattern(a, b), 0.0, 1.0)[..., None]
    dark = palette[rng.integers(0, 2)]
    bright = palette[rng.integers(4, 6)]
    shade = 0.12 * (_smooth_noise(rng, size_px, num_cells=5) - 0.5)[..., None]
    return np.asarray(dark + share * (bright - dark) + shade)
