"""Checks the arguments of a run on a cluster before anything is sent.

A wrong argument would otherwise end a run minutes later, in the step that reads it. Each check
calls the code of that step.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mal.errors import MalError, SpecError
from mal.registry.snapshot import DatasetManifest, SplitSnapshot
from mal.spec import ExperimentSpec
from mal.storage import redact_uri
from mal.storage.uris import REMOTE_SCHEMES

from ._arguments import ArgumentError, is_path_parameter
from ._registry import Pipeline

# Action by the component that resolves `spec` for it.
_ACTIONS = {
    "train": "train",
    "tune": "train",
    "train-distributed": "train",
    "evaluate": "evaluate",
    "inference": "inference",
    "label-shard": "inference",
    "export": "export",
}
_DATA_PARTS = ("train", "val", "label")
_WEIGHT_KEYS = ("pretrained_model_path", "resume_training_checkpoint_path")
_REMOTE = " or ".join(f"{scheme}://" for scheme in REMOTE_SCHEMES)
# Values that only a run has; each satisfies the rules of what it stands for.
_SOME_FOLDER = "s3://bucket/folder"
_SOME_NAMESPACE = "namespace"
_SOME_RUN = "0" * 32


def check_arguments(pipeline: Pipeline, arguments: Mapping[str, Any]) -> None:
    """Check everything about a run that this machine can know.

    Raises:
        ArgumentError: With all problems found.
    """
    values = pipeline.with_defaults(arguments)
    problems: list[str] = []
    for check in (
        _check_uris,
        _check_spec,
        _check_policy,
        _check_trials,
        _check_search,
        _check_job,
    ):
        try:
            check(pipeline, values)
        except SpecError as error:
            problems += error.problems
        except MalError as error:
            problems.append(str(error))
    if problems:
        # Several steps resolve the same spec and find the same problem.
        raise ArgumentError("\n".join(dict.fromkeys(problems)))


def _check_uris(pipeline: Pipeline, values: Mapping[str, Any]) -> None:
    problems = [
        f"{name} must be {_REMOTE}, got {redact_uri(value)}, which {_unread_by_pods(value)}. "
        "Copy it to the object store."
        for name, value in values.items()
        if pipeline.parameters[name].type == "STRING"
        and (is_path_parameter(name) or name == "outputs_uri")
        and value
        and not _is_remote(value)
    ]
    for part in _DATA_PARTS:
        names = (f"{part}_images", f"{part}_annotations")
        if any(values.get(name) for name in names):
            problems += [
                f"{name} must be set, got ''. Set both URIs of the {part} part."
                for name in names
                if not values.get(name)
            ]
    if problems:
        raise SpecError(problems)


def _check_spec(pipeline: Pipeline, values: Mapping[str, Any]) -> None:
    problems: list[str] = []
    for action in pipeline_actions(pipeline):
        try:
            problems += _weight_problems(_resolved(action, values))
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)


def pipeline_actions(pipeline: Pipeline) -> list[str]:
    """Return the actions whose spec the steps of a pipeline resolve."""
    components = pipeline.function.pipeline_spec.components
    names = [name.removeprefix("comp-").rstrip("-0123456789") for name in components]
    return sorted({_ACTIONS[name] for name in names if name in _ACTIONS})


def _resolved(action: str, values: Mapping[str, Any]) -> ExperimentSpec:
    from mal.steps.specs import step_spec

    paths = {"evaluate.checkpoint", "inference.checkpoint", "export.checkpoint"}
    return step_spec(
        action,
        _unread_data(values),
        spec=values.get("spec", ""),
        overrides=[*values.get("overrides", ()), *_trial_overrides(action, values)],
        results_dir=_SOME_FOLDER,
        paths={key: _SOME_FOLDER for key in paths if key.startswith(action)},
        is_complete=not values.get("model"),  # of a model that exists, only the step reads the spec
    )


def _trial_overrides(action: str, values: Mapping[str, Any]) -> list[str]:
    return list(values.get("trial_overrides", ())) if action == "train" else []


def _unread_data(values: Mapping[str, Any]) -> DatasetManifest:
    """Return a manifest with the URIs alone: nobody has read the data yet."""

    def part(name: str) -> SplitSnapshot:
        images = values.get(f"{name}_images") or values.get("images") or _SOME_FOLDER
        boxes = values.get(f"{name}_annotations") or values.get("annotations") or _SOME_FOLDER
        return SplitSnapshot(images, boxes, "", "", 0, 0, 0, 0, 0, False, 0)

    val = part("val") if values.get("val_annotations") else None
    return DatasetManifest("", part("train"), val, part("label"))


def _weight_problems(spec: ExperimentSpec) -> Iterator[str]:
    """Yield a problem for weights on this machine; another absolute path may be in the image."""
    for name in _WEIGHT_KEYS:
        path = getattr(spec.train, name)
        if not path or ":" in path:
            continue
        if not path.startswith("/") or Path(path).exists():
            yield (
                f"train.{name} must be {_REMOTE}, timm:NAME or a path in the image, got {path}, "
                f"which {_unread_by_pods(path)}. Copy it to the object store."
            )


def _check_policy(_: Pipeline, values: Mapping[str, Any]) -> None:
    from mal.automl import decide_route, packaged_automl_support

    if "automl_policy" in values:
        decide_route(values["automl_policy"], support=packaged_automl_support())


def _check_trials(_: Pipeline, values: Mapping[str, Any]) -> None:
    if values.get("trials", 0) < 0:
        raise SpecError(f"trials must be at least 0, got {values['trials']}. Use 0 for no limit.")


def _check_search(_: Pipeline, values: Mapping[str, Any]) -> None:
    """Check the settings of the pipeline `tune`."""
    if "algorithm" not in values:
        return
    from mal.automl.katib import katib_search
    from mal.automl.settings import Budget, SearchSettings, algorithm_from
    from mal.automl.space import build_search_space
    from mal.cluster.katib import build_experiment
    from mal.spec.schema import action_schema

    if values["backend"] not in ("local", "katib"):
        raise SpecError(f"backend must be local or katib, got {values['backend']!r}. Choose one.")
    budget = Budget(
        num_trials=values["trials"], minutes=values["minutes"], num_epochs=values["epochs"]
    )
    settings = SearchSettings(
        algorithm=algorithm_from(values["algorithm"]),
        ranges=tuple(values["ranges"]),
        budget=budget,
        trial_overrides=tuple(values["trial_overrides"]),
        num_parallel=values["parallel"],
        seed=values["seed"],
    )
    space = build_search_space(action_schema("train"), settings.keys, settings.ranges)
    if values["backend"] == "katib":
        search = katib_search(space, settings)
        _check_limits(values)
        build_experiment(_job_settings({**values, "gpus_per_node": -1}), search)


def _check_job(_: Pipeline, values: Mapping[str, Any]) -> None:
    """Build the training job of `train_distributed`."""
    if "num_nodes" not in values:
        return
    from mal.cluster import get_job_kind

    _check_limits(values)
    kind = get_job_kind(values["backend"])
    kind.build(_job_settings(values))


def _check_limits(values: Mapping[str, Any]) -> None:
    from mal.cluster import WaitLimits

    names = ("queue_timeout_s", "start_timeout_s")
    WaitLimits(**{name: values[name] for name in names if name in values})


def _job_settings(values: Mapping[str, Any]) -> Any:
    from mal.cluster import job_name
    from mal.steps.training_job import job_settings

    # `_check_uris` and `_check_spec` report problems of these; here they would be reported twice.
    return job_settings(
        _unread_data({}),
        name=job_name(_SOME_RUN, _SOME_RUN),
        namespace=values["namespace"] or _SOME_NAMESPACE,
        image=values["image"],
        num_nodes=values.get("num_nodes", 1),
        outputs_uri=_SOME_FOLDER,
        spec="",
        overrides=(),
        gpus_per_node=values["gpus_per_node"],
        job=values["job"],
    )


def _is_remote(value: str) -> bool:
    scheme, separator, _ = str(value).partition("://")
    return bool(separator) and scheme.lower() in REMOTE_SCHEMES


def _unread_by_pods(value: str) -> str:
    if "://" in value:
        return "no step can read"
    return "is on this machine: the pods of a run cannot read its disk"
