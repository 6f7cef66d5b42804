"""New annotations in, a better model out: detect, train or search, measure, promote."""

from typing import NamedTuple

from kfp import dsl

from mal.kfp.components.detect_new_annotations import detect_new_annotations
from mal.kfp.components.evaluate import evaluate
from mal.kfp.components.export import export
from mal.kfp.components.fetch_champion import fetch_champion
from mal.kfp.components.promote import promote
from mal.kfp.components.record_skip import record_skip
from mal.kfp.components.snapshot_dataset import snapshot_dataset
from mal.kfp.components.tune import tune
from mal.registry.gate import GateSettings

from .._step_setup import prepare

PIPELINE_NAME = "retrain"


class RetrainOutputs(NamedTuple):
    """The outputs of every run; everything else is in the model store."""

    snapshot: dsl.Dataset
    summary: dsl.Markdown


@dsl.pipeline(name=PIPELINE_NAME)
def retrain(  # noqa: PLR0917 - kfp calls it by position
    train_images: str,
    train_annotations: str,
    store: str,
    val_images: str = "",
    val_annotations: str = "",
    spec: str = "",
    overrides: list[str] = [],  # noqa: B006 - kfp compiles the literal
    min_new_annotations: int = 100,
    quiet_period_s: float = 600.0,
    warm_start: bool = True,
    automl_policy: str = "auto",
    trials: int = 0,
    miou_margin: float = GateSettings.miou_margin,
    category_margin: float = GateSettings.category_margin,
    category_floor: float = GateSettings.category_floor,
    max_parity_diff: float = GateSettings.max_parity_diff,
    min_gain: float = GateSettings.min_gain,
    registry: str = "",
    model_name: str = "mal",
) -> RetrainOutputs:
    """Train when there are enough new annotations, and promote the model if the gate allows it.

    The gate allows a model whose mIoU is at most miou_margin below the champion's. Only the last
    step changes the model store, in one conditional write: a run that fails or is stopped leaves
    champion and last training unchanged, and the next run tries again.

    Args:
        train_images: Folder or archive of the training images, local or s3://.
        train_annotations: COCO JSON with the training boxes, local or s3://.
        store: Model store: a folder or s3:// with champion, versions and last training.
        val_images: Images of the set on which champion and challenger are evaluated.
        val_annotations: Its annotations, with true masks; without them nothing is promoted.
        spec: Experiment spec as YAML text, recipe:NAME, or '' for the defaults.
        overrides: dotted.key=value settings that win over the spec.
        min_new_annotations: New or changed boxes that start a training; 0 for any change.
        quiet_period_s: Seconds since the last write to the data set that are needed.
        warm_start: Start the training from the champion's weights.
        automl_policy: auto searches train.lr and train.wd if the validation part has masks, at the
            cost of at most five trainings; on raises an error instead of training plainly; off
            trains plainly.
        trials: Largest number of trials, instead of that limit; the first is the plain training.
        miou_margin: Allowed decrease of the mIoU relative to the champion.
        category_margin: Allowed decrease of the IoU of each category.
        category_floor: Lowest allowed IoU of a category.
        max_parity_diff: Largest allowed difference of the exported model from PyTorch.
        min_gain: How much the mean IoU of a first model must exceed that of the best masks without
            training; -1 disables the check.
        registry: Address of a Kubeflow Model Registry, http(s)://host:port; '' for none.
        model_name: Name of the registered model there.
    """
    found = detect_new_annotations(
        train_images=train_images,
        train_annotations=train_annotations,
        val_images=val_images,
        val_annotations=val_annotations,
        store=store,
        min_new_annotations=min_new_annotations,
        quiet_period_s=quiet_period_s,
        pipeline_name=PIPELINE_NAME,
    )
    snapshot = found.outputs["snapshot"]
    with dsl.If(found.outputs["changed"] == True, name="changed"):  # noqa: E712 - kfp reads it
        pinned = snapshot_dataset(
            train_images=train_images,
            train_annotations=found.outputs["frozen_train_annotations"],
            val_images=val_images,
            val_annotations=found.outputs["frozen_val_annotations"],
            pipeline_name=PIPELINE_NAME,
        )
        dataset = pinned.outputs["dataset"]
        current = fetch_champion(snapshot=snapshot, overrides=overrides, warm_start=warm_start)
        # One step for both routes, as in auto_label.
        trained = tune(
            dataset=dataset,
            spec=spec,
            overrides=current.outputs["train_overrides"],
            automl_policy=automl_policy,
            trials=trials,
        ).set_display_name("train-challenger")
        settings = {"spec": spec, "overrides": overrides, "dataset": dataset}
        model = trained.outputs["model"]
        measured = evaluate(model=model, **settings).set_display_name("evaluate-challenger")
        exported = export(model=model, **settings).set_display_name("export-challenger")
        candidate = {
            "snapshot": snapshot,
            "dataset": dataset,
            "model": model,
            "onnx": exported.outputs["onnx"],
            "report": measured.outputs["report"],
            "challenger_metrics": measured.outputs["metrics"],
            "miou_margin": miou_margin,
            "category_margin": category_margin,
            "category_floor": category_floor,
            "max_parity_diff": max_parity_diff,
            "min_gain": min_gain,
            "registry": registry,
            "model_name": model_name,
            "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            "run_name": dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
        }
        version = current.outputs["version"]
        with dsl.If(version != "", name="with-champion"):
            best = evaluate(model=current.outputs["champion"], **settings)
            best.set_display_name("evaluate-champion")
            against_champion = promote(
                champion_metrics=best.outputs["metrics"], champion_version=version, **candidate
            )
        with dsl.Else(name="first-model"):
            as_first = promote(**candidate)  # there is nothing to compare with
        for step in (against_champion, as_first):
            step.set_display_name("promote")
        for step in (trained, measured, best):
            prepare(step)
        prepare(exported, uses_gpus=False)
        # Not cached: the data at a URI and the store may change.
        for step in (pinned, current, against_champion, as_first):
            prepare(step, is_cached=False)
    with dsl.Else(name="unchanged"):
        skipped = record_skip(snapshot=snapshot, registry=registry, model_name=model_name)
    for step in (found, skipped):
        prepare(step, is_cached=False)
    return RetrainOutputs(snapshot=snapshot, summary=found.outputs["summary"])
