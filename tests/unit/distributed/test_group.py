"""Two real processes agree, and notice when one of them is gone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ranks import run_ranks

from mal.distributed.group import broadcast_from_rank0, gather_values, max_of_ranks
from mal.errors import WorkerError


def test_a_single_process_needs_no_process_group() -> None:
    assert gather_values("a") == ["a"]
    assert max_of_ranks(3) == 3
    assert broadcast_from_rank0([1]) == [1]


def test_values_and_flags_of_all_ranks_meet(tmp_path: Path) -> None:
    run_ranks(
        """
values = gather_values({"rank": worker.rank, "long": "x" * worker.rank})
highest = max_of_ranks(worker.rank)
first = broadcast_from_rank0(worker.rank or "the first's")
found = [values, highest, first]
pathlib.Path(sys.argv[1], str(worker.rank)).write_text(json.dumps(found))
""",
        tmp_path,
    )
    for rank in "01":
        values, highest, first = json.loads((tmp_path / rank).read_text())
        assert values == [{"rank": 0, "long": ""}, {"rank": 1, "long": "x"}]
        assert (highest, first) == (1, "the first's")


@pytest.mark.parametrize("is_shared", [True, False])
def test_the_first_ranks_file_reaches_all(tmp_path: Path, is_shared: bool) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "weights").write_bytes(b"abc" * 1000)
    run_ranks(
        f"""
import mal.distributed.group as group
group.FILE_CHUNK_BYTES = 1000
folder = pathlib.Path(sys.argv[1], str(worker.rank))
folder.mkdir(exist_ok=True)
if not {is_shared} and worker.rank:
    group.sha256_of_file = lambda path: "of another file"
path = broadcast_file_from_rank0(folder / "weights" if worker.is_rank0 else None, folder)
pathlib.Path(folder, "found").write_text(str(path))
assert path.read_bytes() == b"abc" * 1000
assert broadcast_file_from_rank0(None, folder) is None
""",
        tmp_path,
    )
    assert (tmp_path / "0" / "found").read_text() == str(tmp_path / "0" / "weights")
    folder = "0" if is_shared else "1"
    assert (tmp_path / "1" / "found").read_text() == str(tmp_path / folder / "weights")


def test_a_rank_that_is_gone_is_noticed_and_named(tmp_path: Path) -> None:
    with pytest.raises(WorkerError):
        run_ranks(
            """
gather_values(0)
if worker.rank == 1:
    os._exit(9)
for _ in range(1000):
    gather_values(0)
""",
            tmp_path,
        )
    message = (tmp_path / "error 0").read_text()
    assert message.startswith("Rank 0 of 2 lost its connection to another rank: ")
    assert "continue from the last checkpoint" in message


def test_buffers_become_those_of_the_first_rank(tmp_path: Path) -> None:
    run_ranks(
        """
from mal.distributed.group import broadcast_buffers
module = torch.nn.BatchNorm2d(2)
module.running_mean += worker.rank + 1
module.num_batches_tracked += worker.rank
broadcast_buffers(module)
found = [module.running_mean.tolist(), int(module.num_batches_tracked)]
pathlib.Path(sys.argv[1], str(worker.rank)).write_text(json.dumps(found))
""",
        tmp_path,
    )
    found = [json.loads((tmp_path / rank).read_text()) for rank in "01"]
    assert found == [[[1.0, 1.0], 0]] * 2
