"""Every item is one rank's, and their results come back in order, or not at all."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from ranks import run_ranks

from mal.distributed import NodeTopology
from mal.distributed.workers import Worker
from mal.stages.sharding import merge_shares, share_of

MERGES = """
import signal
import numpy as np
import mal.stages.sharding as sharding
from mal.runtime import Interrupted
sharding.MAX_BLOCK = 3
found = {}
def results(num_items, stop_at):
    for item in sharding.share_of(np.arange(num_items), worker):
        if item == stop_at:
            raise Interrupted(signal.SIGTERM)
        yield int(item)
for num_items, stop_at in [(0, -1), (1, -1), (2, -1), (7, -1), (20, -1), (20, 10)]:
    seen = []
    try:
        merged = sharding.merge_shares(
            results(num_items, stop_at), num_items, worker, encode=lambda r: [r], decode=sum
        )
        seen.extend(merged)
    except Interrupted as interrupt:
        seen.append(f"signal {interrupt.signal_number}")
    found[f"{num_items} {stop_at}"] = seen
pathlib.Path(sys.argv[1], str(worker.rank)).write_text(json.dumps(found))
"""


@pytest.mark.parametrize("num_items", [0, 1, 3, 4, 5, 11, 2000])
@pytest.mark.parametrize("num_nodes", [1, 2, 3])
def test_each_item_is_in_one_share(num_items: int, num_nodes: int) -> None:
    items = np.arange(100, 100 + num_items)
    shares = [
        share_of(items, Worker(NodeTopology(num_nodes, node_rank, 2), local_rank)).tolist()
        for node_rank in range(num_nodes)
        for local_rank in range(2)
    ]
    assert sorted(itertools.chain(*shares)) == items.tolist()
    assert all(share == sorted(share) for share in shares)


def test_alone_the_results_are_passed_through() -> None:
    merged = merge_shares(iter("ab"), 2, Worker(), encode=list, decode=str)
    assert list(merged) == ["a", "b"]


def test_all_ranks_get_all_results_in_order_and_stop_at_the_same_one(tmp_path: Path) -> None:
    run_ranks(MERGES, tmp_path)
    first, second = (json.loads((tmp_path / rank).read_text()) for rank in "01")
    assert first == second
    for num_items in (0, 1, 2, 7, 20):
        assert first[f"{num_items} -1"] == list(range(num_items))
    # Item 10 is the second rank's; the first one's block before it is whole.
    assert first["20 10"] == [*range(9), "signal 15"]
