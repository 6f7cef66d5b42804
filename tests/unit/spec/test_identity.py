"""Every key that a training reads is either part of what the run is, or may change."""

import pytest

from mal.spec import ExperimentSpec, load_spec
from mal.spec.identity import KEY_ROLES, Role, identity_values, is_of_training, role_of
from mal.spec.load import iterate_settings

KEYS = [key for key, *_ in iterate_settings(ExperimentSpec)]


@pytest.mark.parametrize("key", [key for key in KEYS if is_of_training(key)])
def test_every_key_of_a_training_has_a_role_in_the_table(key: str) -> None:
    assert key in KEY_ROLES, f"decide in mal/spec/identity.py what {key} makes of a run"


def test_the_table_names_keys_of_the_spec_only() -> None:
    assert set(KEY_ROLES) <= set(KEYS)


@pytest.mark.parametrize(
    ("key", "role"),
    [
        ("train.lr", Role.IDENTITY),
        ("train.seed", Role.IDENTITY),
        ("train.max_steps", Role.LENGTH),
        ("dataset.train_ann_path", Role.DATA),
        ("train.num_gpus", Role.MACHINE),
        ("train.overwrite", Role.RECORD),
        ("inference.batch_size", Role.NONE),
    ],
)
def test_what_a_key_decides(key: str, role: Role) -> None:
    assert role_of(key) is role


def test_a_key_that_nobody_has_classified_decides_what_is_learned() -> None:
    assert role_of("train.newest_key") is Role.IDENTITY


def test_how_the_best_is_chosen_counts_where_there_is_a_validation_set() -> None:
    plain, strict = (load_spec("train", {}, [f"evaluate.min_box_side={n}"]) for n in (0, 9))
    assert identity_values(plain, is_measured=False) == identity_values(strict, is_measured=False)
    assert identity_values(plain, is_measured=True) != identity_values(strict, is_measured=True)
