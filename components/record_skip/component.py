"""Record a run that trained nothing."""

from kfp import dsl

from .._images import CONTROL_IMAGE


@dsl.component(base_image=CONTROL_IMAGE, packages_to_install=[], install_kfp_package=False)
def record_skip(
    *,
    snapshot: dsl.Input[dsl.Dataset],
    skipped: dsl.Output[dsl.Artifact],
    registry: str = "",
    model_name: str = "mal",
) -> None:
    """Record why nothing was trained.

    If an earlier run could not update the model registry, this step updates it.

    Args:
        snapshot: Output of detect_new_annotations.
        skipped: The reason, also in the metadata.
        registry: Address of a Kubeflow Model Registry, http(s)://host:port; '' for none.
        model_name: Name of the model in that registry.
    """
    from pathlib import Path

    from mal.artifacts import write_json
    from mal.registry import promotion
    from mal.registry.changes import read_detection
    from mal.registry.model_registry import registry_of_run
    from mal.registry.model_store import ModelStore
    from mal.steps import Step, metadata

    with Step(snapshot=snapshot) as step:
        detection = read_detection(snapshot.path)
        step.log(f"nothing was trained: {detection.reason}")
        store = ModelStore(detection.store_uri)
        promotion.update_registry(store, store.read(), registry_of_run(registry, model_name))
        write_json(Path(skipped.path), {"reason": detection.reason, **detection.counts})
        step.write_artifact(skipped, metadata.skip_metadata(detection, snapshot))
