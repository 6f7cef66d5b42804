"""The spec of a run whose data sets are given as roots, and whose model as a parent job."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial

from mal.errors import SpecError
from mal.spec import ExperimentSpec, load_spec
from mal.spec.load import SECTIONS, SpecSource, subject_of
from mal.spec.sources import flatten, parse_override
from mal.tao.data_sources import missing_settings, root_keys
from mal.tao.parent_job import parent_job_keys


def load_run_spec(
    action: str,
    sources: Sequence[SpecSource] = (),
    overrides: Sequence[str] = (),
    *,
    train_datasets: str | Sequence[str] = (),
    eval_dataset: str = "",
    inference_dataset: str = "",
    parent_job: str = "",
) -> ExperimentSpec:
    """Load a spec whose data and checkpoint keys may come from roots and a parent job.

    Roots and the parent job win over the sources, overrides over all. A file is not searched for
    where an override sets its key.

    Args:
        action: train, evaluate, inference or export.
        sources: As in `load_spec`; the later wins.
        overrides: `dotted.key=value`.
        train_datasets: Root of the training set; empty for none.
        eval_dataset: Root of the validation set; '' for none.
        inference_dataset: Root of the set to label; '' for none.
        parent_job: Results folder of the run that trained the checkpoint; '' for none.

    Raises:
        SpecError: With all problems of the spec and the roots.
        ArtifactError: The parent job has no checkpoint.
        StorageError: A bucket is out of reach.
    """
    overridden = _keys_of(overrides)
    keys = parent_job_keys(action, parent_job, except_for=overridden)
    problems: list[str] = []
    try:
        keys |= root_keys(
            train_datasets=train_datasets,
            eval_dataset=eval_dataset,
            inference_dataset=inference_dataset,
            except_for=overridden,
        )
    except SpecError as error:
        problems += error.problems
    try:
        spec = load_spec(
            action, [*sources, keys], overrides, find_missing=partial(missing_settings, action)
        )
    except SpecError as error:
        known = {subject_of(problem) for problem in problems}
        new = [problem for problem in error.problems if subject_of(problem) not in known]
        raise SpecError(problems + new) from error
    if problems:
        raise SpecError(problems)
    return spec


def _keys_of(overrides: Sequence[str]) -> set[str]:
    """Return the dotted keys that overrides set; `load_spec` reports malformed ones."""
    keys: set[str] = set()
    for override in overrides:
        with contextlib.suppress(SpecError):
            keys.update(flatten(parse_override(override), SECTIONS))
    return keys
