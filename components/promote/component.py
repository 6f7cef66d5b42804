"""Promote a model that passes the gate."""

from typing import NamedTuple

from kfp import dsl

from .._images import CONTROL_IMAGE


@dsl.component(base_image=CONTROL_IMAGE, packages_to_install=[], install_kfp_package=False)
def promote(
    *,
    snapshot: dsl.Input[dsl.Dataset],
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    onnx: dsl.Input[dsl.Model],
    report: dsl.Input[dsl.HTML],
    challenger_metrics: dsl.Input[dsl.Metrics],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    champion_metrics: dsl.Input[dsl.Metrics] | None = None,
    champion_version: str = "",
    miou_margin: float = 0.005,
    category_margin: float = 0.05,
    category_floor: float = 0.0,
    max_parity_diff: float = 0.001,
    min_gain: float = 0.0,
    registry: str = "",
    model_name: str = "mal",
    run_id: str = "",
    run_name: str = "",
) -> NamedTuple("Outputs", [("version", str), ("promoted", bool)]):  # type: ignore[valid-type]
    """Register a challenger, and make it the champion if it passes every check of the gate.

    Only this step changes the model store, in one conditional write. A challenger without metrics
    is never promoted. If the champion changed since the run started, the step fails. Do not cache
    this step.

    Args:
        snapshot: Output of detect_new_annotations: the store, and its state at that time.
        dataset: Manifest of snapshot_dataset, recorded with the version.
        model: Model folder of train or tune.
        onnx: Folder of export.
        report: Report of evaluate, kept with the version.
        challenger_metrics: metrics.json of the challenger.
        champion_metrics: metrics.json of the champion on the same set; None without a champion.
        metrics: The values that the gate compared.
        summary: The decision, check by check.
        version: Version under which the challenger is registered.
        promoted: True: the challenger is the champion.
        champion_version: Version of the champion; '' for none.
        miou_margin: How much lower than the champion's the mIoU may be.
        category_margin: How much lower the IoU of any category may be.
        category_floor: Least allowed IoU of any category.
        max_parity_diff: Largest allowed difference of the exported model from PyTorch.
        min_gain: For a first model: how much its mean IoU must exceed that of the best masks
            without training (plain box, ellipse, training-free); -1: no such check.
        registry: Address of a Kubeflow Model Registry, http(s)://host:port; '' for none.
        model_name: Name of the model in that registry.
        run_id: Id of this pipeline run, recorded in the registry.
        run_name: Name of this pipeline run, recorded in the registry.
    """
    from mal.lineage.page_record import artifact_records
    from mal.registry import changes, gate, promotion
    from mal.registry.model_registry import registry_of_run
    from mal.steps import Step, summaries

    with Step(snapshot=snapshot) as step:
        detection = changes.read_detection(snapshot.path)
        challenger = promotion.read_metrics(challenger_metrics.path)
        champion = promotion.read_champion_metrics(champion_version, champion_metrics)
        lineage = artifact_records(
            snapshot=snapshot, dataset=dataset, model=model, onnx=onnx, report=report
        )
        candidate = promotion.Candidate(
            model.path, onnx.path, report.path, challenger, champion, lineage
        )
        limits = gate.GateSettings(
            miou_margin, category_margin, category_floor, max_parity_diff, min_gain
        )
        target = registry_of_run(registry, model_name, run_id=run_id, run_name=run_name)
        outcome = promotion.register_and_promote(detection, candidate, limits, target)
        step.log(outcome.sentence)
        step.log_metrics(metrics, outcome.metrics)
        step.write_summary(summary, summaries.outcome_markdown(outcome), model=model)
    return outcome.version, outcome.is_promoted
