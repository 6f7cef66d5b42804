"""Fetch the champion."""

from typing import NamedTuple

from kfp import dsl

from .._images import CONTROL_IMAGE


@dsl.component(base_image=CONTROL_IMAGE, packages_to_install=[], install_kfp_package=False)
def fetch_champion(
    *,
    snapshot: dsl.Input[dsl.Dataset],
    champion: dsl.Output[dsl.Model],
    overrides: list[str] = [],  # noqa: B006 - kfp compiles the literal
    warm_start: bool = True,
) -> NamedTuple("Outputs", [("version", str), ("train_overrides", list[str])]):  # type: ignore[valid-type]
    """Copy the champion from the model store; the next training starts from its weights.

    Args:
        snapshot: Output of detect_new_annotations; it names the model store.
        champion: Model folder; empty before the first promotion.
        version: Version of the champion; '' before the first promotion.
        train_overrides: `overrides` and, with warm_start, the champion as the start weights.
        overrides: dotted.key=value settings of the user.
        warm_start: False: do not start from the champion's weights.
    """
    from mal.registry import model_fetch
    from mal.registry.changes import read_detection
    from mal.steps import Step, metadata

    with Step(snapshot=snapshot) as step:
        detection = read_detection(snapshot.path)
        fetched = model_fetch.fetch_champion(detection, champion.path)
        fetched_version = fetched.version if fetched else ""
        step.log(f"champion: {fetched_version or 'none yet'}")
        step.write_artifact(champion, metadata.champion_metadata(fetched, detection.store_uri))
        start = model_fetch.starting_from(fetched if warm_start else None, overrides)
    return fetched_version, start
