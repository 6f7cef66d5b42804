"""Leave a trace of a run that had nothing to train on."""

from kfp import dsl

from components._images import CONTROL_IMAGE


@dsl.component(base_image=CONTROL_IMAGE, packages_to_install=[], install_kfp_package=False)
def record_skip(*, snapshot: dsl.Input[dsl.Dataset], skipped: dsl.Output[dsl.Artifact]) -> None:
    """Record that, and why, nothing was trained.

    Args:
        snapshot: What detect_new_annotations found.
        skipped: The reason, in the metadata as well.
    """
    from pathlib import Path

    from mal.artifacts import write_json
    from mal.lifecycle import lineage, steps
    from mal.lifecycle.changes import read_detection

    with steps.running_step():
        found = read_detection(Path(snapshot.path))
        steps.tell(f"nothing was trained: {found.reason}")
        write_json(Path(skipped.path), {"reason": found.reason, **found.counts})
        steps.describe(skipped, lineage.skip_metadata(found, snapshot))
