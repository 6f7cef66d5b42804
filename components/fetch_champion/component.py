"""Bring the model that is in use."""

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
    """Copy the champion of the model store, and let the next training start from its weights.

    Args:
        snapshot: What detect_new_annotations found; it names the store.
        champion: Model folder; empty before the first promotion.
        version: Of the champion; '' before the first promotion.
        train_overrides: The given ones, and the one that starts training from the champion.
        overrides: dotted.key=value settings of the user.
        warm_start: False: train as if there were no champion.
    """
    from pathlib import Path

    from mal.registry import model_fetch
    from mal.registry.changes import read_detection
    from mal.steps import metadata as lineage
    from mal.steps import step as steps

    with steps.running_step():
        found = read_detection(Path(snapshot.path))
        fetched = model_fetch.fetch_champion(found, Path(champion.path))
        steps.tell(f"champion: {fetched.version if fetched else 'none yet'}")
        facts = lineage.champion_metadata(fetched, snapshot, store=found.store_uri)
        steps.describe(champion, facts)
        start = model_fetch.starting_from(fetched if warm_start else None, overrides)
    return fetched.version if fetched else "", start
