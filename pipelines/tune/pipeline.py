"""The best settings for a set: snapshot, tune, train with the best, evaluate, export."""

from typing import NamedTuple

from kfp import dsl

from mal.kfp.components._images import TRAIN_IMAGE
from mal.kfp.components.evaluate import evaluate
from mal.kfp.components.export import export
from mal.kfp.components.train import train
from mal.kfp.components.tune import tune as tune_step

from .._step_setup import prepare, set_run_id
from .._steps import take_snapshot

PIPELINE_NAME = "tune"


class TuneOutputs(NamedTuple):
    """The outputs of a run."""

    dataset: dsl.Dataset
    leaderboard: dsl.Markdown
    search: dsl.HTML
    model: dsl.Model
    metrics: dsl.Metrics
    report: dsl.HTML
    onnx: dsl.Model


@dsl.pipeline(name=PIPELINE_NAME)
def tune(  # noqa: PLR0917 - kfp calls it by position
    train_images: str,
    train_annotations: str,
    val_images: str,
    val_annotations: str,
    spec: str = "",
    overrides: list[str] = [],  # noqa: B006 - kfp compiles the literal
    backend: str = "local",
    algorithm: str = "bayesian",
    ranges: list[str] = [],  # noqa: B006 - kfp compiles the literal
    trial_overrides: list[str] = [],  # noqa: B006 - kfp compiles the literal
    trials: int = 0,
    minutes: float = 0.0,
    epochs: int = 0,
    parallel: int = 1,
    seed: int = 0,
    image: str = TRAIN_IMAGE,
    namespace: str = "",
    outputs_uri: str = "",
    job: dict = {},  # type: ignore[type-arg]  # noqa: B006 - kfp knows no other type of a mapping
    start_timeout_s: int = 1800,
) -> TuneOutputs:
    """Search the settings of a training, train with the best, measure and export the model.

    Args:
        train_images: Folder or archive of the training images, local or s3://.
        train_annotations: COCO JSON with the training boxes, local or s3://.
        val_images: Images of the validation part.
        val_annotations: Annotations of the validation part, with masks.
        spec: Experiment spec as YAML text, recipe:NAME, or '' for the defaults.
        overrides: dotted.key=value settings that win over the spec.
        backend: local (on the devices of the step) or katib (each trial a PyTorchJob).
        algorithm: bayesian, random, hyperband, asha or bohb; on Katib bayesian or random.
        ranges: KEY=LOW:HIGH[:log], KEY=LOW:HIGH:STEP or KEY=OPTION,OPTION beside the default ones.
        trial_overrides: dotted.key=value settings only for the trials, such as train.max_steps.
        trials: Largest number of trials; 0 for no limit.
        minutes: Longest wall time; 0 for no limit. Not on Katib.
        epochs: Largest number of epochs of all trials; 0 for no limit. Not on Katib.
        parallel: Parallel trials; 0 for one per GPU of the step.
        seed: Seed of the choice of values.
        image: Katib: image of the trials' pods, with mal and torch.
        namespace: Katib: namespace of the experiment; '' is that of the run.
        outputs_uri: Katib: root URI of the results, one folder per trial; '' is beside the model.
        job: Katib: other settings of a trial's training job, see docs/operations.md.
        start_timeout_s: Katib: longest wait for the first trial; 0 for no limit.
    """
    dataset = take_snapshot(
        train_images=train_images,
        train_annotations=train_annotations,
        val_images=val_images,
        val_annotations=val_annotations,
        pipeline_name=PIPELINE_NAME,
    )
    tuned = prepare(
        tune_step(
            dataset=dataset,
            spec=spec,
            overrides=overrides,
            algorithm=algorithm,
            ranges=ranges,
            trial_overrides=trial_overrides,
            trials=trials,
            minutes=minutes,
            epochs=epochs,
            parallel=parallel,
            seed=seed,
            backend=backend,
            image=image,
            namespace=namespace,
            outputs_uri=outputs_uri,
            job=job,
            start_timeout_s=start_timeout_s,
        )
    )
    set_run_id(tuned)
    settings = {"dataset": dataset, "spec": tuned.outputs["best_spec"]}
    model = prepare(train(**settings)).outputs["model"]
    evaluated = prepare(evaluate(model=model, **settings))
    exported = prepare(export(model=model, **settings), uses_gpus=False)
    return TuneOutputs(
        dataset=dataset,
        leaderboard=tuned.outputs["leaderboard"],
        search=tuned.outputs["report"],
        model=model,
        metrics=evaluated.outputs["metrics"],
        report=evaluated.outputs["report"],
        onnx=exported.outputs["onnx"],
    )
