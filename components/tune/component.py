"""Search the settings of a training, and train with the best."""

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
    """Search the settings of a training by the validation masks, or train without a search.

    With backend local the search runs on the devices of this step. Without a budget it is limited
    to 10 trials and to the epochs of 5 plain trainings; its cost is logged before it starts. With
    katib each trial is a PyTorchJob and a whole training; by default there are 5.

    Args:
        dataset: Manifest of snapshot_dataset; its validation part needs masks to search.
        model: Model folder of the best trial, with the files of `train`; latest and best are the
            same checkpoint.
        metrics: Metrics of the model and of the search.
        leaderboard: Every trial, the best first.
        report: History, learning curves, importance and parallel coordinates on one page.
        spec: Experiment spec as YAML text, recipe:NAME, or '' for the defaults.
        overrides: dotted.key=value settings that win over the spec.
        automl_policy: on, off (the same as the component train), or auto (no search where there are
            no masks to rank trials by).
        backend: local or katib.
        algorithm: bayesian, random, hyperband, asha or bohb; on Katib bayesian or random.
        ranges: KEY=LOW:HIGH[:log], KEY=LOW:HIGH:STEP or KEY=OPTION,OPTION beside the default ones
            of train.lr and train.wd.
        trial_overrides: dotted.key=value settings of the trials alone, such as train.max_steps.
        trials: Maximum number of trials; 0: no limit.
        minutes: Maximum duration; 0: no limit. Not for Katib.
        epochs: Maximum number of epochs of all trials; 0: no limit. Not for Katib.
        parallel: Number of trials at a time; 0 is one for each GPU of the step.
        seed: Random seed of the search.
        image: Katib: image of the trials' pods, with mal and torch.
        namespace: Katib: namespace of the experiment; '' is that of the step.
        outputs_uri: Katib: parent folder of the trials' results; '' is beside the model artifact.
        job: Katib: all other settings of a trial's job, listed in docs/operations.md.
        start_timeout_s: Katib: longest wait for the first trial; 0: no limit.
        best_params: Values of the searched keys; empty after a plain training.
        best_metric: Validation mIoU of the model; -1 where there are no masks to measure with.
        best_spec: YAML text of the whole spec with the best values, for the steps after this one.
    """
    from mal.automl.settings import Budget, SearchSettings, algorithm_from
    from mal.steps import Step
    from mal.steps import tune as tuning

    with Step(dataset=dataset) as step:
        budget = Budget(num_trials=trials, minutes=minutes, num_epochs=epochs)
        tuned = tuning.tune(
            step.data, model, spec=spec, overrides=overrides, policy=automl_policy,
            settings=SearchSettings(
                algorithm=algorithm_from(algorithm), ranges=tuple(ranges), budget=budget,
                trial_overrides=tuple(trial_overrides), num_parallel=parallel, seed=seed,
            ),
            backend=backend, image=image, namespace=namespace, outputs_uri=outputs_uri,
            job=job, start_timeout_s=start_timeout_s,
        )  # fmt: skip
        step.write_artifact(model, tuning.tuned_model_metadata(tuned, model))
        step.log_metrics(metrics, tuned.metrics)
        search = tuning.search_metadata(model)
        page = tuning.leaderboard_page(tuned, model)
        step.write_artifact(leaderboard, search, text=page)
        step.write_artifact(report, search, text=tuned.report)
    return tuned.best_values, tuned.best_metric, tuned.best_spec
