"""`mal inference`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np

from mal.artifacts import REPORT_FILE
from mal.data.crop_dataset import ImageReader
from mal.data.datamodule import open_image_set
from mal.data.size_prior import SizePrior
from mal.errors import SpecError, StorageError
from mal.evaluation.report import write_report
from mal.labeling.label_counts import LabelCounts
from mal.labeling.label_file import LabelForm, write_labels
from mal.labeling.load import load_model, prediction_settings
from mal.labeling.mask_spool import MaskSpool
from mal.labeling.masks import PredictedMasks
from mal.runtime import choose_device, handling_stop_signals
from mal.spec.experiment import ExperimentSpec
from mal.stages.estimation import with_estimated_boxes
from mal.stages.evaluate import report_facts
from mal.stages.launch import distributed
from mal.stages.measure import predict_rows
from mal.stages.results import InferenceResult
from mal.stages.session import recording
from mal.status import Status
from mal.storage import ResultsFolder, child_uri
from mal.tao import checkpoint_of, data_uris


@distributed("inference")
def run_inference(spec: ExperimentSpec) -> InferenceResult:
    """Write a mask for every box of `inference.ann_path`.

    Raises:
        MostlyEmptyError: More than half of the masks are empty, and `inference.allow_empty` is not
            set. The labels are written.
        SpecError: A key is missing.
        AnnotationError: The data set cannot be used.
        ArtifactError: The model cannot be loaded.
        StorageError: The output cannot be written; checked before the prediction.
    """
    section = dataclasses.replace(
        spec.inference, checkpoint=checkpoint_of(spec.inference.checkpoint)
    )
    inputs = {"inference.checkpoint": section.checkpoint, **data_uris("inference", spec)}
    with handling_stop_signals(), recording("inference", spec, inputs) as session:
        labels = _output_file(session.results, section.label_dump_path)
        session.outputs.append(labels)
        form = LabelForm(section.label_format, section.keep, section.tight_boxes)
        reader = open_image_set(
            section.ann_path,
            section.img_dir,
            key="inference",
            with_masks=section.load_mask or bool({"masks", "crowds"} & set(section.keep)),
            annotation_type=spec.dataset.type,
        )
        loaded = load_model(section, spec, choose_device(spec, section.gpu_ids))
        settings = prediction_settings(loaded.spec, section, loaded.crop_size)
        prior = SizePrior.for_set(reader.boxes, loaded.size_prior)
        reader = with_estimated_boxes(loaded.model, reader, settings, prior)
        rows = np.flatnonzero(~form.kept_rows(reader.boxes))
        masks = predict_rows(loaded.model, reader, rows, settings, "label")
        result = InferenceResult(
            session.path, labels, session.path / REPORT_FILE, len(reader.boxes), LabelCounts()
        )
        if not session.is_rank0:
            for _ in masks:  # every rank must predict its share to the end
                pass
            return result
        with MaskSpool(reader.boxes, labels.parent) as spool:
            predicted = spool.fill(masks)
            counts = write_labels(labels, reader.boxes, predicted, form)
            metrics = _metrics(reader, predicted, counts)
            write_report(
                session.path / REPORT_FILE,
                title="Labels",
                metrics=metrics,
                boxes=reader.boxes,
                masks=predicted,
                ious=None,
                image_reader=reader,
                facts=report_facts(loaded, section.ann_path),
            )
        session.status.write(Status.RUNNING, counts.line(), kpi=metrics)
        result = dataclasses.replace(result, counts=counts)
        if not section.allow_empty:
            session.verdict = counts.problem(_uri_of(labels, session.results))
    return result


def _output_file(results: ResultsFolder, label_dump_path: str) -> Path:
    """Return the path of the labels, after checking that it can be written.

    The name may include the results folder, as TAO's services give it.
    """
    name = label_dump_path.removeprefix(f"{results.uri.rstrip('/')}/")
    path = results.path / name
    if "://" in name or path.is_dir():
        raise SpecError(
            f"inference.label_dump_path must be a local file, got '{label_dump_path}'. Give a file "
            "name; inference.results_dir may be s3://."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise StorageError(
            f"inference.label_dump_path must be in a writable folder, got {path}. Choose another."
        )
    return path


def _uri_of(labels: Path, results: ResultsFolder) -> str:
    """Return where the user finds the labels: remote results are uploaded from a local folder."""
    if not labels.is_relative_to(results.path):
        return str(labels)
    return child_uri(results.uri, str(labels.relative_to(results.path)))


def _metrics(
    reader: ImageReader, masks: PredictedMasks, counts: LabelCounts
) -> dict[str, float | None]:
    return {
        "num_images": len(reader.boxes.images),
        "mean_score": masks.mean_score,
        **counts.metrics(),
    }
