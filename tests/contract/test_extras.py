"""Nothing asks for an optional package that it can do without; what needs one names its extra."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from absent_packages import run_without
from tiny_sets import TINY_SPEC, TinySet, write_tiny_set

from mal.errors import EXTRA_BY_PACKAGE

REPOSITORY = Path(__file__).parents[2]
EXTRAS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]
# Optional packages that mal never imports itself, and what the optional ones bring.
ABSENT = {*EXTRA_BY_PACKAGE, "alembic", "kfp_kubernetes", "plotly", "sqlalchemy"}
TUNE = """
import sys
from pathlib import Path
from mal.automl.settings import SearchSettings
from mal.registry.snapshot import snapshot_dataset
from mal.steps import Step
from mal.steps import tune as tuning

class Artifact:
    def __init__(self, name):
        self.path = self.uri = str(Path(name).resolve())
        self.metadata = {}

policy, backend, images, annotations, spec = sys.argv[1:]
data = snapshot_dataset(
    train_images=images, train_annotations=annotations,
    val_images=images, val_annotations=annotations,
)
dataset, model = Artifact("dataset"), Artifact("model")
data.write(Path(dataset.path))
with Step(dataset=dataset) as step:
    tuned = tuning.tune(
        step.data, model, spec=spec, overrides=[], policy=policy, settings=SearchSettings(),
        backend=backend, image="", namespace="", outputs_uri="", job={}, start_timeout_s=1,
    )
    step.write_artifact(model, tuning.tuned_model_metadata(tuned, model))
    Path("leaderboard.md").write_text(tuning.leaderboard_page(tuned, model))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TinySet:
    return write_tiny_set(tmp_path_factory.mktemp("set"), num_images=2)


@pytest.fixture(scope="module")
def folder(data: TinySet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `mal train` has run without any extra."""
    folder = tmp_path_factory.mktemp("without-extras")
    annotations, images = str(data.annotations), str(data.images)
    spec = yaml.safe_load(TINY_SPEC)
    spec["results_dir"] = "out"
    for split in ("train", "val"):
        spec["dataset"] |= {f"{split}_ann_path": annotations, f"{split}_img_dir": images}
    for action in ("evaluate", "inference", "export"):
        spec.setdefault(action, {})["checkpoint"] = "out/train"
    spec["inference"] |= {"ann_path": annotations, "img_dir": images}
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    done = run_without(ABSENT, ["-m", "mal", "train", "-e", "spec.yaml"], folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_package_of_an_extra_is_known_by_it() -> None:
    listed = {
        re.split(r"[<>=!~\[]", requirement)[0].replace("-", "_"): extra
        for extra, requirements in EXTRAS.items()
        if extra not in ("dev", "release", "readers")
        for requirement in requirements
    }
    del listed["kfp_kubernetes"]  # a part of kfp's own namespace
    assert listed.items() <= EXTRA_BY_PACKAGE.items()
    assert set(EXTRA_BY_PACKAGE.values()) == set(listed.values())


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import mal; mal.Predictor"],
        ["-m", "mal", "--help"],
        ["-m", "mal", "--version"],
        ["-m", "mal", "spec", "train"],
        ["-m", "mal", "recipes"],
        ["-m", "mal", "node"],
        ["-m", "mal", "schema", "-o", "schemas"],
        ["-m", "mal", "dataset", "demo", "-o", "demo", "--images", "2"],
        ["-m", "mal", "dataset", "check", "ANNOTATIONS", "IMAGES"],
        ["-m", "mal", "evaluate", "-e", "spec.yaml"],
        ["-m", "mal", "inference", "-e", "spec.yaml"],
        ["-m", "pipelines", "--help"],
    ],
    ids=lambda arguments: " ".join(arguments[1:4]),
)  # fmt: skip
def test_it_runs_without_any_extra(arguments: list[str], folder: Path, data: TinySet) -> None:
    words = {"ANNOTATIONS": str(data.annotations), "IMAGES": str(data.images)}
    given = [
        re.sub("ANNOTATIONS|IMAGES", lambda found: words[found[0]], word) for word in arguments
    ]
    done = run_without(ABSENT, given, folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["mal", "export", "-e", "spec.yaml"], "export"),
        (["mal", "automl", "-e", "spec.yaml"], "automl"),
        (["mal", "dataset", "check", "s3://bucket/a.json", "s3://bucket/images/"], "s3"),
        (["mal", "inference", "-e", "spec.yaml", "inference.checkpoint=s3://bucket/out"], "s3"),
        (["pipelines", "list"], "kfp"),
        (["pipelines", "compile", "-o", "compiled"], "kfp"),
        (["pipelines", "run", "auto_label"], "kfp"),
        (["pipelines", "schedule", "list", "--host", "http://localhost:1"], "kfp"),
        (["components"], "kfp"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_what_is_missing_names_its_extra_in_one_line(
    arguments: list[str], extra: str, folder: Path
) -> None:
    done = run_without(ABSENT, ["-m", *arguments], folder)
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert last.endswith(f"must be installed for this. Run: pip install 'mal[{extra}]'.")
    assert sum("must be installed" in line for line in done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["local", "katib"])
@pytest.mark.parametrize("policy", ["off", "auto"])
def test_a_pipelines_train_step_without_optuna_trains_plainly(
    policy: str, backend: str, data: TinySet, tmp_path: Path
) -> None:
    step = ["-c", TUNE, policy, backend, str(data.images), str(data.annotations), TINY_SPEC]
    done = run_without(ABSENT, step, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "mal_model_latest.pth").exists()
    asked = "pip install 'mal[automl]'" in (tmp_path / "leaderboard.md").read_text()
    assert asked == (policy == "auto")


@pytest.mark.slow
def test_a_pipelines_train_step_that_must_search_names_the_extra(
    data: TinySet, tmp_path: Path
) -> None:
    step = ["-c", TUNE, "on", "local", str(data.images), str(data.annotations), TINY_SPEC]
    done = run_without(ABSENT, step, tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("Run: pip install 'mal[automl]'.")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("policy", [pytest.param("off", marks=pytest.mark.thorough), "auto"])
def test_auto_label_runs_on_this_machine_without_optuna(
    policy: str, data: TinySet, tmp_path: Path
) -> None:
    """As `make demo` did in a fresh clone, until the train step asked for Optuna."""
    kept = {package for package, extra in EXTRA_BY_PACKAGE.items() if extra in ("kfp", "export")}
    absent = ABSENT - kept - {"kubernetes", "kfp_kubernetes"}  # kfp needs Kubernetes' client
    parameters = {"spec": TINY_SPEC, "automl_policy": policy}
    for split in ("train", "val"):
        parameters[f"{split}_images"] = str(data.images)
        parameters[f"{split}_annotations"] = str(data.annotations)
    given = [word for name, value in parameters.items() for word in ("-p", f"{name}={value}")]
    done = run_without(absent, ["-m", "pipelines", "run", "auto_label", *given], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs" / "latest" / "labels.json").exists()
