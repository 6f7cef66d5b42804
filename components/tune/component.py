"""Search the settings of a training, and learn masks with the best."""

from typing import NamedTuple

from kfp import dsl

from .._images import COMPONENT_IMAGE


@dsl.component(base_image=COMPONENT_IMAGE, packages_to_install=[], install_kfp_package=False)
def tune(
    *,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    leaderboard: dsl.Output[dsl.Markdown],
    report: dsl.Output[dsl.HTML],
    spec: str = "",
    overrides: list[str] = [],  # noqa: B006 - kfp compiles the literal
    automl_policy: str = "on",
    backend: str = "local",
    algorithm: str = "bayesian",
    ranges: list[str] = [],  # noqa: B006 - kfp compiles the literal
    trial_overrides: list[str] = [],  # noqa: B006 - kfp compiles the literal
    trials: int = 0,
    minutes: float = 0.0,
    epochs: int = 0,
    parallel: int = 1,
    seed: int = 0,
    image: str = "",
    namespace: str = "",
    outputs_uri: str = "",
    job: dict = {},  # type: ignore[type-arg]  # noqa: B006 - kfp knows no other type of a mapping
    start_timeout_s: int = 1800,
) -> NamedTuple("Outputs", [("best_params", dict), ("best_metric", float), ("best_spec", str)]):  # type: ignore[valid-type]
    """Search the settings of a training by the validation's masks; or train plainly.

    With backend local the search runs on the devices of this step. Without a budget it is limited
    to 10 trials and to the epochs of 5 plain trainings; what it will cost is in the log before it
    starts. With katib each trial is a PyTorchJob and a whole training; by default there are 5.

    Args:
        dataset: Manifest of snapshot_dataset; its validation part needs masks to search.
        model: Folder of the best trial, as `train` leaves it; latest and best are the same.
        metrics: Figures of the model, and of the search.
        leaderboard: Every trial, the best first.
        report: History, learning curves, importance and parallel coordinates on one page.
        spec: Experiment spec as YAML text, recipe:NAME, or '' for the defaults.
        overrides: dotted.key=value settings that win over the spec.
        automl_policy: on, off (exactly the component train), or auto (plainly where there are no
            masks to rank trials by).
        backend: local or katib.
        algorithm: bayesian, random, hyperband, asha or bohb; on Katib bayesian or random.
        ranges: KEY=LOW:HIGH[:log], KEY=LOW:HIGH:STEP or KEY=OPTION,OPTION beside the default ones
            of train.lr and train.wd.
        trial_overrides: dotted.key=value settings of the trials alone, such as train.max_steps.
        trials: At most so many trials; 0 does not limit.
        minutes: At most so long; 0 does not limit. Not on Katib.
        epochs: At most so many epochs of all trials; 0 does not limit. Not on Katib.
        parallel: Trials at a time; 0 is one for each GPU of the step.
        seed: Of the choice of values.
        image: Katib: of the trials' pods, with mal and torch.
        namespace: Katib: of the experiment; '' is the step's own.
        outputs_uri: Katib: below it each trial has a folder of its own; '' is beside the model's.
        job: Katib: every other setting of a trial's job, as docs/operations.md lists them.
        start_timeout_s: Katib: longest wait for the first trial; 0 waits without end.
        best_params: Values of the searched keys; empty after a plain training.
        best_metric: Validation mIoU of the model; -1 where there are no masks to measure with.
        best_spec: YAML text of the whole spec with the best values, for the steps after this one.
    """
    from pathlib import Path

    from mal.registry.snapshot import read_dataset_manifest
    from mal.steps import metadata as lineage
    from mal.steps import step as steps
    from mal.steps import tune as tuning

    with steps.running_step():
        tuned = tuning.tune(
            read_dataset_manifest(Path(dataset.path)), model,
            spec=spec, overrides=overrides, policy=automl_policy, backend=backend,
            algorithm=algorithm, ranges=ranges, trial_overrides=trial_overrides,
            trials=trials, minutes=minutes, epochs=epochs, parallel=parallel, seed=seed,
            image=image, namespace=namespace, outputs_uri=outputs_uri, job=job,
            start_timeout_s=start_timeout_s,
        )  # fmt: skip
        facts = tuning.leave_outputs(tuned, dataset, model.path, leaderboard.path, report.path)
        for name, value in lineage.figures(tuned.figures).items():
            metrics.log_metric(name, value)
        for artifact, known in zip((model, leaderboard, report), facts, strict=True):
            steps.describe(artifact, known)
        steps.add_note(leaderboard, model=model)
    return tuned.best_values, tuned.best_metric, tuned.best_spec
