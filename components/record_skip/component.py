"""Leave a trace of a run that had nothing to train on."""

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
    """Record that, and why, nothing was trained.

    A registry that could not be told of the champion by an earlier run is told now.

    Args:
        snapshot: What detect_new_annotations found.
        skipped: The reason, in the metadata as well.
        registry: Address of a Kubeflow Model Registry, http(s)://host:port; '' for none.
        model_name: Name of the registered model there.
    """
    from pathlib import Path

    from mal.artifacts import write_json
    from mal.registry import promotion
    from mal.registry.changes import read_detection
    from mal.registry.model_registry import registry_of_run
    from mal.registry.model_store import ModelStore
    from mal.steps import metadata as lineage
    from mal.steps import step as steps

    with steps.running_step():
        found = read_detection(Path(snapshot.path))
        steps.tell(f"nothing was trained: {found.reason}")
        store = ModelStore(found.store_uri)
        promotion.tell_registry(store, store.read(), registry_of_run(registry, model_name))
        write_json(Path(skipped.path), {"reason": found.reason, **found.counts})
        steps.describe(skipped, lineage.skip_metadata(found, snapshot))
