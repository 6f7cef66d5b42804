"""One self-contained HTML page about predicted masks: metrics, distribution, pictures, facts.

The page fetches nothing and runs no script, so that it shows in Kubeflow's sandboxed viewer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from mal.artifacts import write_text
from mal.data.annotations import CocoBoxes, Rle
from mal.errors import AnnotationError, MalError
from mal.evaluation.baselines import BASELINES, usefulness_warning
from mal.evaluation.histogram import Histogram, lay_out_histogram
from mal.evaluation.metrics import (
    InstanceScore,
    category_names,
    instances_by_size,
    mean_over_categories,
)
from mal.evaluation.metrics_text import reason_unmeasured, skipped_objects
from mal.evaluation.pictures import Picture, draw_object
from mal.labeling.masks import InstanceMask, PredictedMasks
from mal.shown import shown

MAX_PAGE_BYTES = 3_000_000
PICTURES_PER_GALLERY = 12
MAX_CATEGORIES_LISTED = 24
CATEGORIES_AT_EACH_END = 10
TEMPLATE = "report.html.j2"

ImageReader = Callable[[int], NDArray[np.uint8]]

_MEASURED_KEY = "mIoU"
_SIZE_RULES = {
    "small": "box up to 32² px",
    "medium": "up to 96² px",
    "large": "above 96² px",
}


@dataclass(frozen=True)
class Tile:
    """One metric at the head of the page; `notes` compare it with something."""

    label: str
    value: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One line of a table; `share` in [0, 1] is drawn as a bar."""

    name: str
    cells: tuple[str, ...]
    share: float | None


@dataclass(frozen=True)
class Table:
    """A table with a caption."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Card:
    """One drawn object; `picture` is None where its image cannot be read."""

    picture: Picture | None
    alt: str
    file_name: str
    annotation_id: str
    category: str
    iou: float | None
    score: float
    has_true_mask: bool


@dataclass(frozen=True)
class Gallery:
    """A row of drawn objects."""

    title: str
    cards: tuple[Card, ...]


def write_report(
    path: Path,
    *,
    title: str,
    metrics: Mapping[str, Any],
    boxes: CocoBoxes,
    masks: PredictedMasks,
    ious: Sequence[InstanceScore] | None,
    image_reader: ImageReader,
    facts: Mapping[str, str],
    seed: int = 0,
) -> None:
    """Write the page, below 3 MB: with fewer pictures where they would not fit.

    Args:
        path: The HTML file.
        title: Heading of the page.
        metrics: The content of `metrics.json`; for labels any metrics by name. With `mIoU` among
            them but None, the page says why nothing was measured.
        boxes: The set; its true masks, where loaded, are drawn too.
        masks: Predictions.
        ious: Measured instances, or None where nothing was measured: scores are shown instead.
        image_reader: Returns an image, H x W x 3 RGB, by index into `boxes.images`.
        facts: Table at the page's end: checkpoint, data, time, versions.
        seed: Chooses the random sample.
    """
    page = _Page(boxes, masks, ious or None, image_reader)
    is_unmeasured = _MEASURED_KEY in metrics and metrics[_MEASURED_KEY] is None
    if page.is_measured:
        tiles = _measured_tiles(metrics)
    else:
        tiles = page.label_tiles() if is_unmeasured else _plain_tiles(metrics)
    content = {
        "title": title,
        "tiles": tiles,
        "notice": _unmeasured_notice(metrics, masks)
        if is_unmeasured
        else _as_sentence(usefulness_warning(metrics)),
        "tables": page.tables(metrics),
        "histogram": page.histogram(),
        "has_reference": page.is_measured,
        "facts": facts,
    }
    write_text(path, _render_within_budget(content, page.galleries(PICTURES_PER_GALLERY, seed)))


def _unmeasured_notice(metrics: Mapping[str, Any], masks: PredictedMasks) -> str:
    shown = "predictions shown, " if len(masks) else ""
    return _as_sentence(f"{reason_unmeasured(metrics)}: {shown}nothing measured.")


def _as_sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _render_within_budget(content: Mapping[str, Any], galleries: Sequence[Gallery]) -> str:
    """Render the page, and again with half the pictures as long as it is too large."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mal.evaluation", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template(TEMPLATE)
    num_pictures = PICTURES_PER_GALLERY
    while True:
        html = template.render(
            **content,
            galleries=[Gallery(one.title, one.cards[:num_pictures]) for one in galleries],
        )
        if len(html.encode()) <= MAX_PAGE_BYTES or not num_pictures:
            return html
        num_pictures //= 2


class _Page:
    """Turns one set of predictions into what the template lists."""

    def __init__(
        self,
        boxes: CocoBoxes,
        masks: PredictedMasks,
        scores: Sequence[InstanceScore] | None,
        image_reader: ImageReader,
    ) -> None:
        self._boxes = boxes
        self._masks = masks
        self._scores = scores
        self._iou_of = {score.index: score.iou for score in scores or ()}
        self._read_image = image_reader
        self._category_names = category_names(boxes)

    @property
    def is_measured(self) -> bool:
        return self._scores is not None

    def label_tiles(self) -> tuple[Tile, ...]:
        masks = self._masks
        mean_score = float(masks.score_N.mean()) if len(masks) else None
        return (
            Tile("Masks predicted", f"{len(masks):,}"),
            Tile("Mean score", _decimal(mean_score)),
            Tile("Empty masks", f"{len(masks) - masks.num_not_empty:,}"),
        )

    def histogram(self) -> Histogram:
        if self._scores is None:
            return lay_out_histogram(self._masks.score_N, "Score")
        return lay_out_histogram(
            [score.iou for score in self._scores],
            "IoU with the true mask",
            [score.box_iou for score in self._scores],
        )

    def tables(self, metrics: Mapping[str, Any]) -> tuple[Table, ...]:
        if self._scores is None:
            return (self._labels_by_category(),)
        return (self._ious_by_size(self._scores), *_ious_by_category(metrics["per_category"]))

    def galleries(self, num_pictures: int, seed: int) -> tuple[Gallery, ...]:
        """Draw both ends of the ranking and a sample of the rest; few objects are all drawn."""
        ranked = self._from_worst_to_best()
        low, high = (
            ("Worst masks", "Best masks")
            if self.is_measured
            else ("Lowest scores", "Highest scores")
        )
        if len(ranked) <= num_pictures:
            chosen = {"All masks": ranked[::-1]}
        else:
            size_of_end = min(num_pictures, len(ranked) // 2)
            rest = ranked[size_of_end : len(ranked) - size_of_end]
            chosen = {
                low: ranked[:size_of_end],
                "Random sample of the others": np.random.default_rng(seed).permutation(rest)[
                    :num_pictures
                ],
                high: ranked[: -size_of_end - 1 : -1],
            }
        return tuple(
            Gallery(name, tuple(self._card(index) for index in indices.tolist()))
            for name, indices in chosen.items()
            if len(indices)
        )

    def _from_worst_to_best(self) -> NDArray[np.int64]:
        """Rank the rows by IoU, or by score where nothing was measured."""
        if not self.is_measured:
            return self._masks.index_N[np.lexsort((self._masks.index_N, self._masks.score_N))]
        ranked = sorted(self._iou_of, key=lambda index: (self._iou_of[index], index))
        return np.array(ranked, dtype=np.int64)

    def _card(self, index: int) -> Card:
        boxes, mask = self._boxes, self._masks.mask_of(index)
        image = boxes.image_of(index)
        category = self._category_names[int(boxes.category_id_N[index])]
        file_name = shown(image.file_name)
        true = self._true_rle(index)
        iou = self._iou_of.get(index)
        measured = f", IoU {iou:.2f}" if iou is not None else ""
        return Card(
            picture=self._draw(mask, true),
            alt=f"{category} in {file_name}: mask drawn on the image{measured}",
            file_name=file_name,
            annotation_id=shown(boxes.annotation_id_of(index)),
            category=category,
            iou=iou,
            score=mask.score,
            has_true_mask=true is not None,
        )

    def _draw(self, mask: InstanceMask, true: Rle | None) -> Picture | None:
        """Draw one object; None where its image cannot be read."""
        try:
            image_HW3 = self._read_image(int(self._boxes.image_index_N[mask.index]))
        except (MalError, OSError):
            return None
        box_xywh = self._boxes.box_xywh_N4[mask.index].tolist()
        return draw_object(image_HW3, box_xywh, mask.rle, true)

    def _true_rle(self, index: int) -> Rle | None:
        """Return the true mask; an unreadable one is not drawn, as it is not measured."""
        try:
            return self._boxes.rle_of(index)
        except AnnotationError:
            return None

    def _ious_by_size(self, scores: Sequence[InstanceScore]) -> Table:
        def row(name: str, group: Sequence[InstanceScore]) -> Row:
            iou, box_iou, ellipse_iou = (
                mean_over_categories(self._boxes, group, value_of)
                for value_of in (
                    lambda score: score.iou,
                    lambda score: score.box_iou,
                    lambda score: score.ellipse_iou,
                )
            )
            cells = (f"{len(group):,}", _decimal(iou), _decimal(box_iou), _decimal(ellipse_iou))
            return Row(name, cells, iou)

        groups = instances_by_size(self._boxes, scores)
        return Table(
            "By size",
            ("size", "objects", "mIoU", "plain box", "ellipse"),
            (
                *(row(f"{size}, {_SIZE_RULES[size]}", group) for size, group in groups.items()),
                row("all", scores),
            ),
        )

    def _labels_by_category(self) -> Table:
        ids_K, kind_N, count_K = np.unique(
            self._boxes.category_id_N[self._masks.index_N], return_inverse=True, return_counts=True
        )
        mean_K = np.bincount(kind_N, self._masks.score_N, len(ids_K)) / count_K
        rows = sorted(
            (-count, self._category_names[category_id], mean)
            for category_id, count, mean in zip(
                ids_K.tolist(), count_K.tolist(), mean_K.tolist(), strict=True
            )
        )
        shown = rows[:CATEGORIES_AT_EACH_END]
        return Table(
            "By category"
            if len(shown) == len(rows)
            else f"{len(shown)} most frequent of {len(rows)} categories",
            ("category", "objects", "mean score"),
            tuple(Row(name, (f"{-count:,}", _decimal(mean)), mean) for count, name, mean in shown),
        )


def _ious_by_category(per_category: Mapping[str, Mapping[str, Any]]) -> tuple[Table, ...]:
    """List the categories from the best to the worst; of many, both ends."""
    ordered = sorted(per_category, key=lambda name: (-per_category[name]["iou"], name))

    def table(caption: str, names: Sequence[str]) -> Table:
        rows = tuple(
            Row(
                name,
                (f"{per_category[name]['count']:,}", _decimal(per_category[name]["iou"])),
                per_category[name]["iou"],
            )
            for name in names
        )
        return Table(caption, ("category", "objects", "mean IoU"), rows)

    if len(ordered) <= MAX_CATEGORIES_LISTED:
        return (table("By category", ordered),)
    end = CATEGORIES_AT_EACH_END
    return (
        table(f"Best {end} of {len(ordered)} categories", ordered[:end]),
        table(f"Worst {end} of {len(ordered)} categories", ordered[: -end - 1 : -1]),
    )


def _measured_tiles(metrics: Mapping[str, Any]) -> tuple[Tile, ...]:
    return (
        Tile("mIoU", _decimal(metrics[_MEASURED_KEY]), _against(metrics, "mIoU", "mIoU")),
        Tile(
            "Mean IoU of objects",
            _decimal(metrics.get("mean_iou_instances")),
            _against(metrics, "mean_iou_instances", "iou"),
        ),
        Tile(
            "AP of masks",
            _decimal(metrics.get("AP")),
            tuple(f"{key} {_decimal(metrics[key])}" for key in ("AP50", "AP75") if key in metrics),
        ),
        Tile(
            "Objects measured",
            f"{metrics['num_instances']:,}",
            tuple(f"left out: {phrase}" for phrase in skipped_objects(metrics)),
        ),
    )


def _against(metrics: Mapping[str, Any], key: str, baseline_suffix: str) -> tuple[str, ...]:
    """Compare a metric with what needs no training."""
    return tuple(
        f"{metrics[key] - value:+.3f} vs {name} {value:.3f}"
        for baseline, name in BASELINES.items()
        if (value := metrics.get(f"{baseline}_{baseline_suffix}")) is not None
    )


def _plain_tiles(metrics: Mapping[str, Any]) -> tuple[Tile, ...]:
    """Show every number given, under its own name."""
    return tuple(
        Tile(
            name.removeprefix("num_").replace("_", " ").capitalize(),
            f"{value:,}" if isinstance(value, int) else _decimal(float(value)),
        )
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    )


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
