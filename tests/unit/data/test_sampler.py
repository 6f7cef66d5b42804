from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mal.data.sampler import EpochSampler, ImagePools


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 9), st.integers(0, 9))
def test_every_item_comes_once_an_epoch(
    num_items: int, num_ranks: int, seed: int, epoch: int
) -> None:
    shares = []
    for rank in range(num_ranks):
        sampler = EpochSampler(num_items, seed=seed, rank=rank, num_ranks=num_ranks)
        sampler.set_epoch(epoch)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler)
    counts = Counter(position for share in shares for _, position in share)
    assert {key[0] for share in shares for key in share} == {epoch}
    assert set(counts) == set(range(num_items))
    assert sum(counts.values()) - num_items < num_ranks  # padding only, so that ranks are even


@given(st.integers(1, 30), st.integers(0, 30), st.integers(0, 9))
def test_a_resumed_epoch_yields_the_rest_and_the_next_epoch_all(
    num_items: int, num_seen: int, seed: int
) -> None:
    whole = list(EpochSampler(num_items, seed=seed))
    resumed = EpochSampler(num_items, seed=seed)
    resumed.num_skipped = num_seen
    assert list(resumed) == whole[num_seen:]
    resumed.set_epoch(1)
    assert len(list(resumed)) == num_items


def test_epochs_are_shuffled_differently() -> None:
    sampler = EpochSampler(30, seed=0)
    first = [position for _, position in sampler]
    sampler.set_epoch(1)
    assert first != [position for _, position in sampler] != list(range(30))


def pools_of(num_boxes: list[int], images_a_pool: int) -> ImagePools:
    """Return pools of images of one size; boxes of image i are the next num_boxes[i] items."""
    image_index_N = np.repeat(np.arange(len(num_boxes)), num_boxes)
    return ImagePools(image_index_N, np.full(len(num_boxes), 10), 10 * images_a_pool)


def pooled(pools: ImagePools, *, seed: int = 0, rank: int = 0, num_ranks: int = 1) -> EpochSampler:
    sampler = EpochSampler(len(pools.image_index_N), seed=seed, rank=rank, num_ranks=num_ranks)
    sampler.pools = pools
    return sampler


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=12).filter(any),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 9),
)
def test_every_item_of_pools_comes_once_an_epoch(
    num_boxes: list[int], images_a_pool: int, num_ranks: int, seed: int
) -> None:
    pools = pools_of(num_boxes, images_a_pool)
    samplers = [
        pooled(pools, seed=seed, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)
    ]
    shares = [[position for _, position in sampler] for sampler in samplers]
    assert {len(share) for share in shares} == {len(samplers[0])}
    counts = Counter(position for share in shares for position in share)
    assert set(counts) == set(range(sum(num_boxes)))
    assert sum(counts.values()) - sum(num_boxes) < num_ranks


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 9))
def test_items_of_an_image_stay_within_one_pool(
    images_a_pool: int, boxes_per_image: int, seed: int
) -> None:
    pools = pools_of([boxes_per_image] * 7, images_a_pool)
    items = [position for _, position in pooled(pools, seed=seed)]
    size = images_a_pool * boxes_per_image
    images = [
        set(pools.image_index_N[items[i : i + size]].tolist()) for i in range(0, len(items), size)
    ]
    assert all(len(pool) <= images_a_pool for pool in images)
    assert sum(len(pool) for pool in images) == len(set.union(*images))


def test_pools_are_other_images_each_epoch_and_mixed_inside() -> None:
    sampler = pooled(pools_of([5] * 20, 4))
    epochs = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        epochs.append([position // 5 for _, position in sampler])
    assert set(epochs[0][:20]) != set(epochs[1][:20])
    num_changes = sum(a != b for a, b in zip(epochs[0], epochs[0][1:], strict=False))
    assert num_changes > 60  # image by image it would be 19


@pytest.mark.parametrize("num_seen", [0, 3, 35])
def test_a_resumed_epoch_of_pools_yields_the_rest(num_seen: int) -> None:
    whole = list(pooled(pools_of([5] * 7, 2)))
    resumed = pooled(pools_of([5] * 7, 2))
    resumed.num_skipped = num_seen
    assert list(resumed) == whole[num_seen:]


def test_an_image_larger_than_the_pool_is_one_of_its_own() -> None:
    pools = ImagePools(np.repeat(np.arange(3), 2), np.array([5, 500, 5]), 10)
    items = [position // 2 for _, position in pooled(pools)]
    place = items.index(1)
    assert items[place : place + 2] == [1, 1]
