"""Who gets the search and who plain training, as tables."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mal.automl import AutoMLSupport, Policy, Route, decide_route, packaged_automl_support
from mal.errors import SpecError

RUNNABLE = AutoMLSupport(automl_enabled=True)
TURNED_OFF = AutoMLSupport(automl_enabled=False)
BROKEN = AutoMLSupport(automl_enabled=True, problems=("schemas/train.schema.json is missing",))

OFF_REQUESTS = [
    "turn off AutoML",
    "Turn AutoML off.",
    "turn off the AutoML, please",
    "could you switch off hyperparameter tuning?",
    "keep automl off",
    "AutoML: off",
    "automl_policy=off",
    "AutoML should be off",
    "set AutoML to false",
    "train with AutoML disabled",
    "AutoML must not be on",
    "disable AutoML",
    "DISABLE HPO",
    "disable hyperparameter search",
    "disable hyper-parameter optimisation",
    "please disable any kind of tuning",
    "skip hyper-parameter tuning",
    "skipping HPO this time",
    "stop tuning the hyperparameters",
    "no HPO",
    "no-HPO run, thanks",
    "no automl",
    "no Auto-ML no HPO",
    "no more hyperparameter sweeps",
    "I have no HPO budget",
    "I have no HPOs budget",
    "there is no time for hyperparameter tuning",
    "no need for AutoML",
    "no need to run HPO",
    "no need to tune",
    "train without AutoML",
    "train without using AutoML",
    "AutoML-free training",
    "I do not want AutoML",
    "I don't think we should use AutoML",
    "don't use automl",
    "dont use automl",
    "don\u2019t use \u201cAutoML\u201d",
    "do not tune",
    "never tune anything",
    "do not tune the learning rate",
    "we won't need HPO",
    "AutoML isn't needed",
    "cannot use AutoML here",
    "plain training",
    "train normally",
    "train the model normally on COCO",
    "standard training",
    "just a standard training",
    "a standard training run, please",
    "I want a regular training with batch size 4",
    "vanilla training",
    "do a vanilla run only",
    "single run only",
    "only a single training run",
    "just one run on my boxes",
    "use AutoML. No, wait: standard training",
    "standard training, no HPO",
    "plain training instead of AutoML",
    "just train",
    "just train the model on these boxes",
    "don't use AutoML just train",
    "disable AutoML on the COCO set",
    "use AutoML. No, wait: turn AutoML off",
    "AutoML was on yesterday, disable HPO today",
    "fine-tune from the MAE weights, no HPO",
    "turn\noff\tAutoML",
    "Please:\n- crop of 256\n- no HPO\n- batch of 4",
    "I'd rather train without AutoML",
    "I would rather not use AutoML",
    "Rather no AutoML",
    "instead use plain training",
    "No AutoML instead plain training",
    "train it rather than run HPO",
    "no AutoML, use the defaults",
    "use lr 1e-4, AutoML disabled",
    "AutoML shouldn't run",
    "AutoML should not run",
    "AutoML must never be used",
    "AutoML is no longer needed",
    "wont use automl",
    "skip the sweep",
    "skip the search",
    "single training run, no sweep",
    "plain old training",
    "normal training run without search",
    "no AutoML/HPO",
    "automl_enabled: false",
    '"automl_enabled": false',
    "automl_enabled=false",
    "train.automl_enabled: false",
    "set automl_enabled to false",
    "don't set automl_enabled to true",
    "don't set automl_enabled=true",
    "automl_disabled: true",
    "enable_automl=false",
    "disable_automl=true",
    "--no-automl",
    "enable AutoML: no",
    "run_automl: no",
    "automl on: false",
    "use AutoML? no",
    "use AutoML? no thanks",
    "Do we need AutoML? No.",
    "Is HPO on? no",
    "AutoML: no",
    "AutoML: never",
    "automl=0",
    "HPO=0",
    "just train on s3://x/use-automl/",
    "no HPO, see s3://b/use-automl/x.json",
]

ON_REQUESTS = [
    "use AutoML",
    "using AutoML, train on my boxes",
    "run HPO",
    "run a hyperparameter search",
    "run AutoML on the COCO set",
    "enable AutoML",
    "re-enable HPO",
    "turn on AutoML",
    "turn AutoML on",
    "turn AutoML back on",
    "AutoML: on",
    "automl_policy=on",
    "tune the hyperparameters",
    "tune the learning rate",
    "optimize hyper parameters",
    "search for the best learning rate",
    "find the best weight decay",
    "train with AutoML",
    "just train the model with AutoML",
    "standard training with AutoML",
    "use AutoML on top of the standard training",
    "use AutoML, not just a standard training",
    "use AutoML with a single run only",
    "find better settings than standard training has",
    "find the best learning rate, then train normally",
    "don't train normally, use HPO",
    "Use AutoML for the learning rate. Then train normally with it.",
    "beat the vanilla training: tune the learning rate",
    "don't disable AutoML",
    "do not turn off HPO",
    "don\u2019t turn AutoML off",
    "never skip hyperparameter tuning",
    "don't train without HPO",
    "AutoML must not be disabled",
    "use AutoML instead of plain training",
    "the no-HPO run last week was bad, use AutoML",
    "use AutoML, the no-HPO run last week was bad",
    "use AutoML because the last run was without HPO",
    "no problem with AutoML",
    "turn off AutoML... actually no, use AutoML",
    "I'd rather use AutoML",
    "use AutoML instead",
    "instead use AutoML",
    "use AutoML rather than plain training",
    "AutoML isn't off",
    "don't set AutoML to false",
    "sweep the hyperparameters",
    "run a sweep",
    "automl_enabled: true",
    "automl_enabled=yes",
    "set automl_enabled to true",
    "enable_automl=1",
    "automl=1",
    "HPO: on",
    "AutoML? yes",
    "use AutoML on s3://x/no-automl/y",
    "run AutoML with /data/no-hpo/spec.yaml.",
]

SILENT_REQUESTS = [
    "",
    "   ",
    "train on my boxes",
    "turn off the light",
    "automlx off",
    "turn off automlx",
    "disable hpoz",
    "don't fine-tune the backbone",
    "fine-tuning on COCO",
    "use the standard training set",
    "take the standard training schedule",
    "try something better than standard training",
    "trials that beat the vanilla training",
    "it does not train normally",
    "I do not want a standard training",
    "training normally takes an hour",
    "train normally distributed noise",
    "is standard training enough?",
    "why did it train normally",
    "only one run at a time",
    "one run only per trial",
    "just one run for each trial",
    "AutoML, single run only per trial",
    "search over the learning rate, standard training",
    "ten trials, each of which should train normally",
    "start with standard training and vary the learning rate",
    "several runs, standard training each",
    "a standard deviation of 2",
    "a single run took an hour",
    "I just trained a model",
    "search for the best checkpoint",
    "why is AutoML disabled?",
    "what does turn off AutoML do?",
    "no masks, no problem",
    "train on s3://x/automl-off/",
    "train on ./automl-off/images and data/no-hpo/x",
    "results_dir=/a/use-automl/x",
    "use the spec no_automl.yaml",
    "\u0000\ud7ff\U0001f600",
]


@pytest.mark.parametrize(
    ("request_text", "policy"),
    [
        *((text, Policy.OFF) for text in OFF_REQUESTS),
        *((text, Policy.ON) for text in ON_REQUESTS),
        *((text, Policy.AUTO) for text in SILENT_REQUESTS),
    ],
)
def test_the_words_of_a_request_are_understood(request_text: str, policy: Policy) -> None:
    assert decide_route("auto", request_text, support=RUNNABLE).policy is policy


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("train the boxes of the set. " * 4000 + "no HPO", Policy.OFF),
        ("no " * 35_000, Policy.AUTO),
        ("automl " * 15_000, Policy.AUTO),
        ("automl is " * 10_000, Policy.AUTO),
        ("search for best a " * 6_000, Policy.AUTO),
        ("x" * 100_000, Policy.AUTO),
        ("'" * 100_000, Policy.AUTO),
        ("/" * 100_000, Policy.AUTO),
        ("automl:" * 15_000, Policy.AUTO),
        ("sweep " * 15_000, Policy.AUTO),
    ],
    ids=[
        "buried",
        "no",
        "automl",
        "settings",
        "searches",
        "word",
        "quotes",
        "slashes",
        "values",
        "sweeps",
    ],
)
def test_a_text_of_100_kb_is_read_like_any_other(text: str, policy: Policy) -> None:
    assert decide_route("auto", text, support=RUNNABLE).policy is policy


@pytest.mark.parametrize(
    ("policy", "request_text", "support", "expected", "reason"),
    [
        ("auto", "", RUNNABLE, ("search", "auto"), "automl_policy is auto"),
        ("", "", RUNNABLE, ("search", "auto"), "automl_policy is auto"),
        (None, "", RUNNABLE, ("search", "auto"), "automl_policy is auto"),
        ("on", "", RUNNABLE, ("search", "on"), "automl_policy is on"),
        ("off", "", RUNNABLE, ("plain", "off"), "automl_policy is off"),
        (" OFF ", "", RUNNABLE, ("plain", "off"), "automl_policy is off"),
        (True, "", RUNNABLE, ("search", "on"), "automl_policy is on"),
        (False, "", RUNNABLE, ("plain", "off"), "automl_policy is off"),
        ("False", "", RUNNABLE, ("plain", "off"), "automl_policy is off"),
        ("on", "no HPO", RUNNABLE, ("search", "on"), "automl_policy is on"),
        ("off", "use AutoML", RUNNABLE, ("plain", "off"), "automl_policy is off"),
        ("auto", "no HPO", RUNNABLE, ("plain", "off"), "the request turns AutoML off"),
        ("Auto", "use HPO", RUNNABLE, ("search", "on"), "the request turns AutoML on"),
        ("auto", "", TURNED_OFF, ("plain", "auto"), "but automl_enabled is false"),
        ("on", "", TURNED_OFF, ("plain", "on"), "but automl_enabled is false"),
        ("auto", "", BROKEN, ("plain", "auto"), "but schemas/train.schema.json is missing"),
        ("on", "", BROKEN, ("plain", "on"), "but schemas/train.schema.json is missing"),
        ("auto", "use HPO", BROKEN, ("plain", "on"), "but schemas/train.schema.json is missing"),
        ("off", "", BROKEN, ("plain", "off"), "automl_policy is off"),
    ],
)
def test_the_route_and_its_reason(
    policy: Any,
    request_text: str,
    support: AutoMLSupport,
    expected: tuple[str, str],
    reason: str,
) -> None:
    decision = decide_route(policy, request_text, support=support)
    assert (decision.route, decision.policy) == expected
    assert decision.reason.endswith(reason) or f"{reason} " in decision.reason
    assert ("searching" in decision.reason) == (decision.route is Route.SEARCH)
    assert "\n" not in decision.reason


@pytest.mark.parametrize("policy", ["maybe", "of", "0", "on off", "x" * 10_000, "a\nb"])
def test_an_unknown_policy_is_an_error_of_one_line(policy: str) -> None:
    with pytest.raises(SpecError, match=r"^automl_policy must .*, got .*auto, on, off\.$") as error:
        decide_route(policy, "no HPO", support=RUNNABLE)
    assert len(str(error.value)) < 200
    assert "\n" not in str(error.value)


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    (tmp_path / "schemas").mkdir()
    (tmp_path / "references").mkdir()
    schema = {"type": "object", "automl_default_parameters": ["train.lr"]}
    (tmp_path / "schemas/train.schema.json").write_text(json.dumps(schema))
    (tmp_path / "references/spec_template_train.yaml").write_text("train:\n  lr: 1.0e-6\n")
    (tmp_path / "references/skill_info.yaml").write_text("automl_enabled: true\n")
    return tmp_path


def test_whole_metadata_can_run_the_search_and_stay_as_they_are(metadata: Path) -> None:
    before = {p: p.read_bytes() for p in metadata.rglob("*") if p.is_file()}
    support = packaged_automl_support(metadata)
    assert support == AutoMLSupport(automl_enabled=True)
    decide_route("off", "turn off AutoML", support=support)
    assert {p: p.read_bytes() for p in metadata.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("value", ["false", "'no'", "1", "null"])
def test_only_true_enables(metadata: Path, value: str) -> None:
    (metadata / "references/skill_info.yaml").write_text(f"automl_enabled: {value}\n")
    support = packaged_automl_support(metadata)
    assert (support.is_runnable, support.problems) == (False, ())


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("schemas/train.schema.json", None, "is missing"),
        ("schemas/train.schema.json", b"{", "does not parse as a JSON object"),
        ("schemas/train.schema.json", b"[]", "does not parse as a JSON object"),
        ("schemas/train.schema.json", b"[" * 100_000, "does not parse as a JSON object"),
        ("schemas/train.schema.json", b"\xff\xfe", "does not parse as a JSON object"),
        ("schemas/train.schema.json", b"{}", "has no automl_default_parameters"),
        ("references/spec_template_train.yaml", None, "is missing"),
        ("references/spec_template_train.yaml", b"a: [", "does not parse as a YAML mapping"),
        ("references/spec_template_train.yaml", b"", "does not parse as a YAML mapping"),
        ("references/skill_info.yaml", None, "is missing"),
        ("references/skill_info.yaml", b"- a", "does not parse as a YAML mapping"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_trains_plainly(
    metadata: Path, name: str, content: bytes | None, problem: str
) -> None:
    if content is None:
        (metadata / name).unlink()
    else:
        (metadata / name).write_bytes(content)
    support = packaged_automl_support(metadata)
    assert support.problems == (f"{name} {problem}",)
    decision = decide_route("on", support=support)
    assert decision.route is Route.PLAIN
    assert f"{name} {problem}" in decision.reason


def test_no_metadata_at_all_names_every_file(metadata: Path) -> None:
    shutil.rmtree(metadata)
    assert len(packaged_automl_support(metadata).problems) == 3


def test_the_packaged_metadata_are_read_without_an_error() -> None:
    assert isinstance(packaged_automl_support(), AutoMLSupport)
