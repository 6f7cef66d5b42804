"""Let a better model take the champion's place."""

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
    champion_metrics: dsl.Input[dsl.Metrics],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
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
    """Register a candidate, ask the gate, and move the pointer to it in one conditional write.

    Only this step changes the model store. A candidate without figures is never promoted; another
    champion since the run started is an error. Not to be cached.

    Args:
        snapshot: What detect_new_annotations found: the store, and the state the run started from.
        dataset: Manifest of snapshot_dataset, recorded.
        model: Model folder of train or tune.
        onnx: Folder of export.
        report: Report of evaluate, kept with the version.
        challenger_metrics: Figures of the candidate.
        champion_metrics: Figures of the champion on the same set; not looked at without one.
        metrics: Figures of both, and their difference.
        summary: The decision, check by check.
        version: What the candidate was registered as.
        promoted: Whether it became the champion.
        champion_version: Version of the champion; '' for none.
        miou_margin: How much lower than the champion's the mIoU may be.
        category_margin: The same for the IoU of every single category.
        category_floor: Least IoU of every category.
        max_parity_diff: Most that the exported model may differ from PyTorch.
        min_gain: How much better than the best masks without training (plain box, ellipse,
            training-free) the mean IoU of a first model must be; -1 does not ask.
        registry: Address of a Kubeflow Model Registry, http(s)://host:port; '' for none.
        model_name: Name of the registered model there.
        run_id: Of this pipeline run, recorded there.
        run_name: Likewise.
    """
    from pathlib import Path

    from mal.registry import promotion
    from mal.registry.changes import read_detection
    from mal.registry.gate import GateSettings
    from mal.registry.model_registry import registry_of_run
    from mal.steps import metadata as lineage
    from mal.steps import step as steps
    from mal.steps import summaries

    with steps.running_step():
        candidate = promotion.Candidate(
            model_dir=Path(model.path),
            onnx_dir=Path(onnx.path),
            report=Path(report.path),
            metrics=steps.read_metrics(challenger_metrics),
            champion_metrics=steps.read_metrics(champion_metrics) if champion_version else None,
            lineage=lineage.described(snapshot, dataset, model, onnx, report),
        )
        gate = GateSettings(miou_margin, category_margin, category_floor, max_parity_diff, min_gain)
        place = registry_of_run(registry, model_name, run_id=run_id, run_name=run_name)
        found = read_detection(Path(snapshot.path))
        outcome = promotion.settle(found, candidate, candidate.judge(gate), place)
        steps.tell(outcome.sentence)
        page = summaries.outcome_markdown(outcome)
        steps.publish(metrics, outcome.figures, summary, page, model=model)
    return outcome.version, outcome.is_promoted
