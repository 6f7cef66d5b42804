"""Generate scenes of simple shapes, to see for what a recipe is fit.

    python docs/sample_scenes.py OUT --kind smooth --boxes 300 --seed 1

`smooth`: objects and ground of one colour each, clearly different, with soft shading. `texture`:
patterns of two colours on patterned ground. `both`: each object and each ground one or the other.
Objects are 20 to 400 px wide and high, three to seven an image of 384 to 560 px. Writes `images/`,
`train.json` with at least so many boxes, and `val.json` with at least 200.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco_mask

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

KINDS = ("smooth", "texture", "both")
IMAGE_SIZES_PX = (384, 480, 560)
RADIUS_PX = (12.0, 190.0)
SIDE_PX = (20, 400)
NUM_OBJECTS = (3, 8)
MIN_VISIBLE_SHARE = 0.85
NUM_VAL_BOXES = 200
POSITION_TRIES = 20
MIN_COLOUR_DISTANCE = 0.35
SHAPES = ("star", "crescent", "cross", "ring", "arrow", "lobes")


def draw_scene(rng: np.random.Generator, kind: str) -> tuple[npt.NDArray[np.uint8], list[Mask]]:
    """Return RGB, (H, W, 3), and the visible pixels of each object."""
    size = int(rng.choice(IMAGE_SIZES_PX))
    ground = rng.uniform(0.05, 0.95, 3)
    other = np.clip(ground + rng.uniform(-0.3, 0.3, 3), 0, 1)
    canvas = ground + smooth_noise(rng, size, 5)[..., None] * (other - ground)
    if is_textured(rng, kind):
        canvas = (canvas + texture(rng, size, rng.uniform(0, 1, 3), rng.uniform(0, 1, 3))) / 2
    masks: list[Mask] = []
    for _ in range(int(rng.integers(*NUM_OBJECTS))):
        coverage = add_object(rng, size, masks)
        if coverage is None:
            continue
        colour = distinct_colour(rng, [ground, other])
        if is_textured(rng, kind):
            surface = texture(rng, size, colour, distinct_colour(rng, [colour]))
        else:
            surface = colour + 0.15 * (smooth_noise(rng, size, 4)[..., None] - 0.5)
        canvas = canvas + coverage[..., None] * (surface - canvas)
        mask = coverage > 0.5
        masks = [*(earlier & ~mask for earlier in masks), mask]
    canvas += rng.normal(0, 0.02, canvas.shape)
    return (np.clip(canvas, 0, 1) * 255).round().astype(np.uint8), masks


def is_textured(rng: np.random.Generator, kind: str) -> bool:
    """Draw whether the next surface is a pattern."""
    return kind == "texture" or (kind == "both" and rng.uniform() < 0.5)


def add_object(rng: np.random.Generator, size: int, earlier: list[Mask]) -> Floats | None:
    """Return the share of each pixel that an object covers; None where there is no room."""
    for _ in range(POSITION_TRIES):
        coverage = draw_coverage(rng, size)
        mask = coverage > 0.5
        sides = [int(mask.any(axis).sum()) for axis in (0, 1)]
        if min(sides) < SIDE_PX[0] or max(sides) > SIDE_PX[1]:
            continue
        if all((one & ~mask).sum() >= MIN_VISIBLE_SHARE * one.sum() for one in earlier):
            return coverage
    return None


def draw_coverage(rng: np.random.Generator, size: int) -> Floats:
    """Draw a shape in a random pose, four samples a pixel."""
    radius = float(np.exp(rng.uniform(*np.log(RADIUS_PX))))
    stretch, turn = rng.uniform(0.6, 1), rng.uniform(0, 2 * np.pi)
    reach = 0.8 * min(radius, 0.45 * size)
    centre_y, centre_x = rng.uniform(reach, size - reach, 2)
    shape, lobes = str(rng.choice(SHAPES)), int(rng.integers(2, 6))
    y, x = np.mgrid[0:size, 0:size] + 0.5
    coverage = np.zeros((size, size))
    for shift_y in (-0.25, 0.25):
        for shift_x in (-0.25, 0.25):
            dy, dx = y + shift_y - centre_y, x + shift_x - centre_x
            u = (dx * np.cos(turn) + dy * np.sin(turn)) / radius
            v = (dy * np.cos(turn) - dx * np.sin(turn)) / (radius * stretch)
            coverage += is_inside(shape, u, v, lobes) / 4
    return coverage


def is_inside(shape: str, u: Floats, v: Floats, lobes: int) -> Mask:
    """Return which points of a disc of radius 1 belong to a shape."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    longer, shorter = np.maximum(abs(u), abs(v)), np.minimum(abs(u), abs(v))
    inside: dict[str, Any] = {
        "star": radius < 0.55 + 0.45 * np.cos(5 * angle),
        "crescent": (radius < 1) & (np.hypot(u - 0.5, v) > 0.68),
        "cross": (longer < 1) & (shorter < 0.31),
        "ring": (radius < 1) & (radius > 0.52),
        "arrow": ((abs(v) < 0.32) & (u > -1) & (u < 0)) | ((u >= 0) & (abs(v) < (1 - u) * 0.85)),
        "lobes": radius < 0.8 + 0.2 * np.cos(lobes * angle),
    }
    return np.asarray(inside[shape], dtype=np.bool_)


def distinct_colour(rng: np.random.Generator, others: list[Floats]) -> Floats:
    """Draw a colour that differs from the others."""
    while True:
        colour: Floats = rng.uniform(0.05, 0.95, 3)
        if all(np.linalg.norm(colour - other) > MIN_COLOUR_DISTANCE for other in others):
            return colour


def texture(rng: np.random.Generator, size: int, first: Floats, second: Floats) -> Floats:
    """Draw a regular pattern of two colours, (H, W, 3)."""
    turn, period = rng.uniform(0, np.pi), rng.uniform(4.5, 14)
    y, x = np.mgrid[0:size, 0:size] + rng.uniform(0, period)
    a = 2 * np.pi * (x * np.cos(turn) + y * np.sin(turn)) / period
    b = 2 * np.pi * (y * np.cos(turn) - x * np.sin(turn)) / period
    waves = (np.sin(a), 1.6 * np.sin(a) * np.sin(b), np.sin(a) + np.sin(b) - 0.4)
    share = np.clip(0.5 + 1.5 * waves[int(rng.integers(3))], 0, 1)[..., None]
    return np.asarray(first + share * (second - first))


def smooth_noise(rng: np.random.Generator, size: int, num_cells: int) -> Floats:
    """Draw a soft pattern in 0..1, (H, W)."""
    cells = Image.fromarray(rng.uniform(0, 1, (num_cells, num_cells)).astype(np.float32))
    noise = np.asarray(cells.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)
    return noise.clip(0, 1)


def write_part(folder: Path, name: str, kind: str, num_boxes: int, seed: list[int]) -> int:
    """Write images and a COCO file of at least so many boxes; returns how many there are."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    while len(annotations) < num_boxes:
        number = len(images) + 1
        pixels, masks = draw_scene(np.random.default_rng([*seed, number]), kind)
        file_name = f"{name}{number:05d}.png"
        Image.fromarray(pixels).save(folder / "images" / file_name)
        height, width = pixels.shape[:2]
        images.append({"id": number, "file_name": file_name, "width": width, "height": height})
        for mask in masks:
            rle: Any = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [float(value) for value in coco_mask.toBbox(rle)],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                }
            )
    document = {
        "categories": [{"id": 1, "name": "object"}],
        "images": images,
        "annotations": annotations,
    }
    (folder / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    return len(annotations)


def main() -> int:
    """Write a set; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--boxes", type=int, default=300, help="of the training part, at least")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        (options.output / "images").mkdir(parents=True)
    except OSError as error:
        parser.error(f"OUT must be a new folder, got {options.output} ({error.strerror})")
    for number, (name, num_boxes) in enumerate((("train", options.boxes), ("val", NUM_VAL_BOXES))):
        seed = [options.seed, number]
        num_written = write_part(options.output, name, options.kind, num_boxes, seed)
        sys.stdout.write(f"{options.output / name}.json: {num_written} boxes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
