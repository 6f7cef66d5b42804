from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mal.errors import SpecError
from mal.recipes import list_recipes
from mal.spec import ExperimentSpec, load_spec
from mal.spec.load import (
    ALIASES,
    SHORTHANDS,
    iterate_settings,
    read_spec_source,
    spec_as_dict,
    write_experiment_yaml,
)

LEAVES = list(iterate_settings(ExperimentSpec))
FLOAT_KEYS = [key for key, hint, facts, _ in LEAVES if hint is float and facts.maximum is None]
yaml_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
yaml_values = st.recursive(
    yaml_scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(yaml_scalars, inner, max_size=3),
    max_leaves=6,
)


def problems_of(
    source: Any = (), overrides: list[str] | None = None, action: str = "train"
) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load_spec(action, source, overrides or [])
    return caught.value.problems


def attempt(content: Any) -> tuple[ExperimentSpec | None, list[str]]:
    try:
        return load_spec("train", content), []
    except SpecError as error:
        return None, error.problems


def value_of(spec: ExperimentSpec, key: str) -> Any:
    value: Any = spec
    for name in key.split("."):
        value = getattr(value, name)
    return value


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "spec.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@given(st.sampled_from([key for key, *_ in LEAVES]), yaml_values)
def test_any_value_is_taken_or_refused_with_its_key(key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    content: dict[str, Any] = {name: value}
    for part in reversed(section.split(".") if section else []):
        content = {part: content}
    spec, problems = attempt(content)
    assert all(" must " in problem and problem.endswith((".", "?")) for problem in problems)
    if spec is None:
        assert any(key in problem for problem in problems)
    else:
        assert type(value_of(spec, key)) is type(value_of(ExperimentSpec(), key))


@given(st.dictionaries(yaml_scalars, yaml_values, max_size=4))
def test_any_mapping_loads_or_is_refused(content: dict[Any, Any]) -> None:
    spec, problems = attempt(content)
    assert (spec is None) == bool(problems)
    assert len(problems) == len(set(problems))


@given(st.text(max_size=60))
def test_any_text_loads_or_is_refused(text: str) -> None:
    try:
        content = read_spec_source(text)
    except SpecError:
        return
    spec, problems = attempt(content)
    assert (spec is None) == bool(problems)


@given(st.floats(1e-12, 1e12))
def test_a_float_survives_every_way_in(value: float) -> None:
    assert load_spec("train", {}, [f"train.lr={value!r}"]).train.lr == value
    assert load_spec("train", {"train": {"lr": value}}).train.lr == value


@pytest.mark.parametrize("text", ["1e-6", "1.e-6", "1E-6", "0.1e-5", "1.0e-06", ".1e-5", "+1e-6"])
def test_scientific_notation_is_a_number(text: str) -> None:
    assert load_spec("train", {}, [f"train.lr={text}"]).train.lr == pytest.approx(1e-6)


def test_the_resolved_spec_loads_back_to_itself(tmp_path: Path) -> None:
    spec = load_spec("train", "recipe:demo", ["train.lr=1e-06", "model_name='a: b'"])
    path = written(tmp_path, write_experiment_yaml(spec))
    assert load_spec("train", path) == spec


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_loads_for_every_action(name: str) -> None:
    assert load_spec("train", f"recipe:{name}").train
    for action in ("evaluate", "inference", "export"):
        assert load_spec(action, f"recipe:{name}", [f"{action}.checkpoint=a.pth"])


def test_the_tao_recipe_is_the_default_behaviour() -> None:
    taken = spec_as_dict(load_spec("train", "recipe:tao", ["wandb.enable=true"]))
    assert taken["train"] == spec_as_dict(ExperimentSpec())["train"]
    assert taken["model"] == spec_as_dict(ExperimentSpec())["model"]


def test_five_mistakes_are_five_problems(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        train: {lr: fast, num_epoch: 3, crf_kernel_size: 4}
        model: {arch: vit-mae-bse/16}
        dataset: {crop_size: 31}
        """,
    )
    problems = problems_of(path)
    assert problems[:3] == [
        f"train.num_epoch is not a key of the spec in {path}. Did you mean train.num_epochs?",
        f"train.lr must be a number, got fast in {path}. The default is 1e-06.",
        f"train.crf_kernel_size must be odd, got 4 in {path}. The default is 3.",
    ]
    assert problems[3].startswith(
        f"model.arch must be a known name, got vit-mae-bse/16 in {path}. Use one of vit-mae-tiny/16"
    )
    assert problems[4:] == [
        f"dataset.crop_size must be at least 32, got 31 in {path}. The default is 512.",
    ]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train=5", "train must be a section of keys, got 5."),
        ("train.cudnn=[1]", "train.cudnn must be a section of keys, got [1]."),
        ("train.lr={}", "train.lr must be a number, got {}."),
        ("train.lr=", "train.lr must be a number, got ''."),
        ("train.lr=true", "train.lr must be a number, got true."),
        ("train.lr=-1", "train.lr must be at least 0, got -1."),
        ("train.lr=.nan", "train.lr must be a finite number, got nan."),
        ("train.lr=1e999", "train.lr must be a finite number, got inf."),
        ("train.crf_zeta=0", "train.crf_zeta must be above 0, got 0."),
        ("train.min_lr_rate=2", "train.min_lr_rate must be at most 1, got 2."),
        ("train.num_epochs=1.5", "train.num_epochs must be a whole number, got 1.5."),
        ("train.num_epochs=true", "train.num_epochs must be a whole number, got true."),
        ("train.use_amp=1", "train.use_amp must be true or false, got 1."),
        ("train.num_epochs=010", "train.num_epochs must be a whole number, got 010."),
        ("train.num_epochs=1:30", "train.num_epochs must be a whole number, got 1:30."),
        ("train.num_epochs=5 #6", "train.num_epochs must be a whole number, got 5 #6."),
        ("train.use_amp=yes", "train.use_amp must be true or false, got yes."),
        ("train.gpu_ids=0", "train.gpu_ids must be a list of whole numbers, got 0."),
        ("train.gpu_ids=[null]", "train.gpu_ids must be a list of whole numbers, got [None]."),
        ("train.optim_betas=[0.9]", "train.optim_betas must have 2 values, got [0.9]."),
        ("train.mask_thres=[0.1, 0.2]", "train.mask_thres must have 1 or 3 values,"),
        ("train.margin_rate=[0, -1]", "train.margin_rate must be at least 0, got [0, -1]."),
        ("train.optim_type=sgd", "train.optim_type must be a known name, got sgd. Use adamw."),
        ("model.crop_size=2", "model.crop_size must be at least 32, got 2."),
        ("batch_size=x", "batch_size must be a whole number, got x."),
        ("train.learning_rate=1", "train.learning_rate is not a key of the spec. Did you mean"),
        ("trian=1", "trian is not a key of the spec. Did you mean train?"),
        ("xyzzy=1", "xyzzy is not a key of the spec. Run mal spec train to see all keys."),
        ("+train.lr=1", "+train.lr is not a key of the spec. Did you mean train.lr?"),
        ("train.lr", "override must read key=value, got train.lr."),
        ("=3", "override must read key=value, got =3."),
        ("train.lr=[", "train.lr must be a YAML value, got [. Quote it."),
        ("train.lr=[!!bool 'x']", "train.lr must be a YAML value, got [!!bool 'x']. Quote it."),
        (f"batch_size=0x{'F' * 5000}", "batch_size must be "),
        ("train.lr=[!!python/name:os.system]", "train.lr must be a YAML value, got [!!python"),
        ("train.lr=!!python/name:os.system", "train.lr must be a number, got !!python"),
        ("train.lr=???", "train.lr must be a number, got ???. The default is 1e-06."),
        ("train.lr=null", "train.lr must be a number, got null. The default is 1e-06."),
        ("results_dir=???", "results_dir must be set, got ???. Write results_dir=VALUE."),
        ("wandb={name: 5}", "wandb.name must be text, got 5. Quote it."),
        ("model.arch=vit-dinov2-small/14", "dataset.crop_size must be a multiple of the patch"),
        ("dataset.crop_size=40", "dataset.crop_size must be a multiple of the patch size 16 of"),
        ("dataset.crop_size=500", "dataset.crop_size must be a multiple of the patch size 16"),
        ("dataset.box_jitter=0.1", "dataset.box_jitter must be 0 without dataset.window_rate,"),
        ("dataset.window_rate=[0.5, 2]", "dataset.window_rate must be at least 1, got [0.5, 2]."),
        ("train.crf_value_low_thres=0.95", "train.crf_value_low_thres must be below 0.5, got"),
        ("train.crf_value_high_thres=0.4", "train.crf_value_high_thres must be above 0.5, got"),
        ("train.optim_betas=[0.9, 1]", "train.optim_betas must be below 1, got [0.9, 1]."),
        ("train.cached_crops=9", "train.cached_crops must be 0 unless model.freeze_backbone"),
        (
            "model.arch=vit-hybrid-small/8",
            "model.mask_head must be pyramid with vit-hybrid",
        ),
    ],
)
def test_a_mistake_is_named_with_the_rule_and_the_remedy(override: str, problem: str) -> None:
    (told,) = problems_of({}, [override])
    assert told.startswith(problem)
    assert told.endswith((".", "?"))
    assert "\n" not in told


@pytest.mark.parametrize(
    ("section", "remedy"),
    [
        ({"train": {"lr": "1e-6"}}, "It is a text: write it without quotes."),
        ({"train": {"batch_size": "4"}}, "It is a text: write it without quotes."),
        ({"train": {"use_amp": "True"}}, "It is a text: write it without quotes."),
        ({"train": {"gpu_ids": "0"}}, "The default is [0]."),
        ({"train": {"lr": "nan"}}, "The default is 1e-06."),
        ({"train": {"num_gpus": "${train.num_nodes}"}}, "Write the value itself; only text may"),
    ],
    ids=["float", "int", "bool", "list", "nan", "reference"],
)
def test_a_text_in_the_place_of_a_value_is_told_as_one(section: Any, remedy: str) -> None:
    (told,) = problems_of(section)
    assert remedy in told


def test_a_wrong_name_lists_the_choices_once() -> None:
    (told,) = problems_of({}, ["model.arch=vit"])
    assert told.count("vit-mae-base/16") == 1


def test_rules_of_several_keys_wait_for_keys_that_are_wrong_themselves() -> None:
    problems = problems_of({}, ["model.arch=vit-hybrid/8", "model.mask_head=pyramid"])
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param("- a\n- b\n", "spec must be a mapping of sections, got a list in", id="list"),
        pytest.param("text", "spec must be a mapping of sections, got a str in", id="text"),
        pytest.param(bytes(range(256)), "spec file must be UTF-8 text,", id="binary"),
        pytest.param(b"a: \0", "spec must be valid YAML,", id="nul"),
        pytest.param("train:\n\tlr: 1\n", "spec must be valid YAML,", id="tab"),
        pytest.param("train: [1\n", "spec must be valid YAML,", id="open bracket"),
        pytest.param("a: 1\n---\nb: 2\n", "spec must be valid YAML,", id="two documents"),
        pytest.param("{[1]: 2}", "spec must be valid YAML,", id="list as key"),
        pytest.param("a: " + "{a: " * 1500 + "1" + "}" * 1500, "spec must be valid", id="deep"),
        pytest.param("train: {lr: 1, lr: 2}", "spec must be valid YAML,", id="key twice"),
        pytest.param("train: {lr: " + "9" * 5000 + "}", "spec must be valid YAML,", id="digits"),
        pytest.param("a: &a {b: *a}", "a is not a key of the spec in", id="endless"),
        pytest.param("results_dir: !!binary aGk=", "results_dir must be text, got b'hi'", id="b64"),
    ],
)
def test_a_file_that_is_no_spec_is_one_problem_that_names_it(
    content: str | bytes, problem: str, tmp_path: Path
) -> None:
    path = written(tmp_path, content)
    (told,) = problems_of(path)
    assert told.startswith(problem)
    assert str(path) in told
    assert "\n" not in told


def test_a_yaml_tag_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = written(tmp_path, f"train: !!python/object/apply:os.mkdir ['{mark}']\n")
    (told,) = problems_of(path)
    assert "python/object" in told
    assert not mark.exists()


def test_aliases_that_double_ten_times_stay_one_problem(tmp_path: Path) -> None:
    lines = ["x0: &x0 [1, 1]"]
    lines += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, 11)]
    path = written(tmp_path, "\n".join([*lines, "train: {gpu_ids: *x10}"]))
    problems = problems_of(path)
    assert len(problems) == 12
    assert max(map(len, problems)) < 2000


@pytest.mark.parametrize("content", ["", "# nothing\n", "train:\n", "train: {}\n", "{}"])
def test_an_empty_spec_is_the_defaults(content: str, tmp_path: Path) -> None:
    assert load_spec("train", written(tmp_path, content)) == ExperimentSpec()


def test_null_is_an_empty_section_or_text() -> None:
    assert load_spec("train", {"train": None, "results_dir": None}) == ExperimentSpec()
    assert load_spec("train", {"results_dir": "a"}, ["results_dir=null"]).results_dir == ""


@pytest.mark.parametrize("place", ["absent.yaml", ".", "a\0b"])
def test_a_place_that_cannot_be_read_is_named(place: str, tmp_path: Path) -> None:
    (told,) = problems_of(f"{tmp_path}/{place}")
    assert told.startswith(f"spec file must be readable, got {tmp_path}/{place} (")


def test_problems_of_several_sources_come_together(tmp_path: Path) -> None:
    problems = problems_of([tmp_path / "absent", "recipe:nope", {"foo": 1}], ["bar", "train.lr=x"])
    assert len(problems) == 5


def test_a_spec_may_stand_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_SPEC", "train:\n  lr: 1e-4\n")
    assert load_spec("train", ["recipe:demo", "env:THE_SPEC"]).train.lr == 1e-4
    monkeypatch.setenv("THE_SPEC", "train.nope: 1")
    with pytest.raises(SpecError, match=r"train.nope is not a key of the spec in env:THE_SPEC\."):
        load_spec("train", "env:THE_SPEC")
    monkeypatch.delenv("THE_SPEC")
    with pytest.raises(SpecError, match=r"spec variable must be set, got no THE_SPEC\."):
        load_spec("train", "env:THE_SPEC")


@pytest.mark.parametrize(("alias", "key"), ALIASES.items())
def test_an_alias_sets_its_key(alias: str, key: str) -> None:
    value = not value_of(ExperimentSpec(), key) if "mask" in key else 256
    assert value_of(load_spec("train", {}, [f"{alias}={str(value).lower()}"]), key) == value


@pytest.mark.parametrize(("shorthand", "keys"), SHORTHANDS.items())
def test_a_shorthand_sets_all_its_keys(shorthand: str, keys: tuple[str, ...]) -> None:
    typed = {"arch": "vit-mae-large/16", "resume_checkpoint": "a.pth", "profile": True}
    value: Any = typed.get(shorthand, 64)
    spec = load_spec("train", {shorthand: value})
    assert [value_of(spec, key) for key in keys] == [value] * len(keys)


def test_the_later_source_and_then_the_override_wins() -> None:
    first, second = {"train": {"lr": 1.0, "wd": 1.0}}, {"train": {"wd": 2.0}}
    spec = load_spec("train", [first, second], ["train.seed=5", "train.seed=6"])
    assert (spec.train.lr, spec.train.wd, spec.train.seed) == (1.0, 2.0, 6)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("results_dir=s3://a/b?x=1=2", "results_dir", "s3://a/b?x=1=2"),
        ("results_dir=", "results_dir", ""),
        ("results_dir=5", "results_dir", "5"),
        ("wandb.run_id=007", "wandb.run_id", "007"),
        ("results_dir=2024-01-31", "results_dir", "2024-01-31"),
        (" train.seed =3", "train.seed", 3),
        ("train.seed=-1", "train.seed", -1),
        ("train.num_epochs=1e3", "train.num_epochs", 1000),
        ("train.lr=1", "train.lr", 1.0),
        ("train={lr: 1e-3}", "train.lr", 1e-3),
        ("wandb.tags=[a, b]", "wandb.tags", ["a", "b"]),
        ("wandb.tags=[07, 'b #2', yes]", "wandb.tags", ["07", "b #2", "yes"]),
    ],
)
def test_an_override_takes_a_value_that_looks_like_json(
    override: str, key: str, value: Any
) -> None:
    assert value_of(load_spec("train", {}, [override]), key) == value


@pytest.mark.parametrize(
    "name",
    [
        "set #2", "#7", "07", "1e3", "0x10", "a: b", "*x", "&x", "!x", "!!str x", "yes", "true",
        "~", "2024-01-31", "1:30", "1_000", "[old] set", "[old]", "{a}", "{a", "[a", "- a", "? a",
        "| a", "> a", "%a", "@a", "`a", "it's", "a 'b'", '"a" b', "'", "a, b",
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["results_dir", "resume_checkpoint"])
def test_the_text_of_an_override_is_taken_as_it_is(name: str, key: str) -> None:
    known = "train.resume_training_checkpoint_path" if key == "resume_checkpoint" else key
    assert value_of(load_spec("train", {}, [f"{key}={name}"]), known) == name


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'07'", "07"),
        ('"a #2"', "a #2"),
        ("'it''s'", "it's"),
        ("' a '", " a "),
        ("'null'", "null"),
        (json.dumps("\N{GRINNING FACE}\x7f"), "\N{GRINNING FACE}\x7f"),
    ],
)
def test_quotes_around_a_whole_text_are_removed(text: str, value: str) -> None:
    assert load_spec("train", {}, [f"results_dir={text}"]).results_dir == value


def test_dotted_keys_stand_in_a_file_too(tmp_path: Path) -> None:
    assert load_spec(
        "train", written(tmp_path, "train.cudnn: {benchmark: true}")
    ).train.cudnn.benchmark


@pytest.mark.parametrize("action", ["evaluate", "inference", "export"])
@pytest.mark.parametrize("value", ["???", None])
def test_the_checkpoint_of_the_action_is_required(action: str, value: str | None) -> None:
    problems = problems_of({action: {"checkpoint": value}}, action=action)
    assert problems == [
        f"{action}.checkpoint must be set, got ???. Write {action}.checkpoint=PATH."
    ]


def test_what_other_actions_require_may_stay_open() -> None:
    content = yaml.safe_load("{inference: {ann_path: '???'}, evaluate: {checkpoint: '???'}}")
    assert load_spec("train", content) == ExperimentSpec()


def test_settings_of_other_actions_are_no_problem() -> None:
    overrides = ["evaluate.trt_engine=a.engine", "evaluate.checkpoint=a.pth"]
    assert load_spec("train", {}, overrides)
    (told,) = problems_of({}, overrides, action="evaluate")
    assert told.startswith("evaluate.trt_engine must be empty, got a.engine")


def test_an_unknown_action_is_refused() -> None:
    assert problems_of({}, action="fly")[0].startswith("action must be known, got fly. Use one of")


def test_defaults_are_never_shared() -> None:
    load_spec("train", {}).train.gpu_ids.append(7)
    assert load_spec("train", {}).train.gpu_ids == [0]


def test_a_number_is_text_on_the_command_line_only() -> None:
    assert problems_of({"model_name": 2024}) == ["model_name must be text, got 2024. Quote it."]


@pytest.mark.parametrize("value", ["tlt_encode", 48151623, ["tlt_encode"], {"a": "tlt_encode"}])
def test_an_encryption_key_is_told_to_have_no_effect_and_kept_nowhere(
    value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    spec = load_spec("train", {"encryption_key": value})
    assert "encryption_key has no effect" in caplog.text
    assert "tlt_encode" not in write_experiment_yaml(spec) + caplog.text
    assert "48151623" not in write_experiment_yaml(spec) + caplog.text


def test_a_reference_takes_the_value_of_another_key() -> None:
    spec = load_spec(
        "train",
        {"results_dir": "/r", "train": {"results_dir": "${results_dir}/t${train.seed}"}},
        ["wandb.name=${train.results_dir}", "train.seed=3"],
    )
    assert (spec.train.results_dir, spec.wandb.name) == ("/r/t3", "/r/t3")


@pytest.mark.parametrize("text", ["${nothing}/t", "${results_dir}", "${oc.env:HOME}", "a${}"])
def test_a_reference_to_no_other_key_is_named(text: str) -> None:
    (told,) = problems_of({"results_dir": text})
    assert told.startswith(f"results_dir must refer to other keys of the spec, got {text}")


@pytest.mark.parametrize("key", ["results_dir", "inference.ann_path", "dataset.train_img_dir"])
def test_a_password_in_a_uri_is_refused_before_it_is_recorded_anywhere(key: str) -> None:
    (told,) = problems_of({}, [f"{key}=https://user:hunter2@host/a@b"])
    assert told.startswith(f"{key} must not contain credentials, got some in https://host/a@b.")
    assert load_spec("train", {}, [f"{key}=s3://bucket/user@host/x"])


@pytest.mark.parametrize("key", ["train.seed", "train.batch_size", "evaluate.batch_size"])
def test_a_number_that_no_machine_can_count_to_is_refused(key: str) -> None:
    (told,) = problems_of({}, [f"{key}={10**26}"])
    assert told.startswith(f"{key} must be at most 2147483647, got 1")
