from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from recsys.batch import ContextBatch
from recsys.cascade.retrieve import Ranking, Retriever, arrange, join
from recsys.context.config import ContextConfig
from recsys.data.dataset import Catalogue, Histories
from recsys.schema import Manifest


class LastItem:
    """Answers with the vector of the last item read, and remembers the gaps it was shown."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        self.gaps: list[int] = []

    def item_vectors(self) -> Tensor:
        return self.vectors

    def queries(self, context: ContextBatch, items: Tensor | None = None) -> dict[str, Tensor]:
        assert items is not None
        self.gaps += context.requests.gap[:, 0].tolist()
        last = context.history.item.gather(1, context.requests.cut - 1)
        return {"prefix": torch.zeros(len(last), 1, items.shape[1]), "step0": items[last]}


def bucket_of(folder: Path, items: list[list[int]], times: list[list[int]]) -> Histories:
    lists = {
        "item": pa.array(items, pa.large_list(pa.int32())),
        "timestamp": pa.array(times, pa.large_list(pa.int64())),
        "behavior": pa.array([[3] * len(row) for row in items], pa.large_list(pa.int8())),
    }
    ends = pa.array([len(row) for row in items], pa.int32())
    users = pa.array([f"u{i}" for i in range(len(items))], pa.large_string())
    table = pa.table({"user_id": users, **lists, "train_end": ends, "valid_end": ends})
    with pa.OSFile(str(folder / "b.arrow"), "wb") as sink:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return Histories(folder / "b.arrow")


def retriever_of(**changes: object) -> tuple[Retriever, LastItem]:
    # Items 2 … 5 are trained, 6 is not. Neighbours on a line: 2 3 4 5 6.
    angle = torch.tensor([0.0, 0.0, 0.1, 0.2, 0.4, 0.8, 0.9])
    model = LastItem(torch.stack([angle.cos(), angle.sin()], dim=1))
    catalogue = Catalogue(
        item_ids=pa.array(["", "", "a", "b", "c", "d", "e"]),
        train_count=torch.tensor([0, 0, 5, 9, 9, 1, 0]),
        coarse=torch.zeros(7, dtype=torch.long),
        num_trained=4,
        features=(),
        values={},
        lists={},
    )
    manifest = Manifest(behaviors=("view",), has_time=bool(changes.pop("has_time", True)))
    found = Retriever(model, catalogue, manifest, ContextConfig(max_history=3), **changes)
    return found, model


HISTORIES = [[2, 3], [], [1], [5, 4, 3, 2], [4]]
TIMES = [[100, 200], [], [100], [10, 20, 30, 40], [300]]


def test_known_users_get_neighbours_and_the_others_what_is_popular(tmp_path: Path) -> None:
    retriever, _ = retriever_of()
    ranking = retriever.rank(bucket_of(tmp_path, HISTORIES, TIMES), 2, batch_size=2)
    # Nearest to the last item among those not seen; popular: 3 and 4 tie with 9 events.
    assert ranking.ids.tolist() == [[4, 5], [3, 4], [3, 4], [-1, -1], [3, 2]]
    assert ranking.is_popular.tolist() == [False, True, True, False, False]
    assert ranking.scores[1].tolist() == [9.0, 9.0]
    assert ranking.scores[3].tolist() == [float("-inf")] * 2


def test_rows_come_back_in_the_order_they_were_asked_for(tmp_path: Path) -> None:
    retriever, _ = retriever_of()
    bucket = bucket_of(tmp_path, HISTORIES, TIMES)
    whole = retriever.rank(bucket, 2)
    rows = torch.tensor([4, 1, 0])
    part = retriever.rank(bucket, 2, rows=rows)
    assert part.ids.tolist() == whole.ids[rows].tolist()
    assert part.is_popular.tolist() == [False, True, False]


def test_events_at_or_after_the_moment_are_not_seen(tmp_path: Path) -> None:
    retriever, model = retriever_of()
    bucket = bucket_of(tmp_path, HISTORIES, TIMES)
    ranking = retriever.rank(bucket, 1, as_of=200)
    assert ranking.is_popular.tolist() == [False, True, True, False, True]
    assert ranking.ids[0].tolist() == [3]  # item 2 was read last, item 3 not seen yet
    assert model.gaps == [1 + 6, 1 + 7]  # 100 s and 160 s since the last event: 2**6, 2**7
    with pytest.raises(ValueError, match=r"as_of \(200\) needs times"):
        retriever_of(has_time=False)[0].rank(bucket, 1, as_of=200)


def test_seen_items_stay_in_when_asked_for(tmp_path: Path) -> None:
    retriever, _ = retriever_of()
    ranking = retriever.rank(bucket_of(tmp_path, HISTORIES, TIMES), 1, filter_seen=False)
    assert ranking.ids[[0, 3, 4], 0].tolist() == [3, 2, 4]


def test_the_allow_list_binds_both_sources(tmp_path: Path) -> None:
    retriever, _ = retriever_of()
    allow = torch.tensor([True, True, False, False, False, True, True])
    ranking = retriever.rank(bucket_of(tmp_path, HISTORIES, TIMES), 2, allow=allow)
    assert ranking.ids.tolist() == [[5, -1], [5, -1], [5, -1], [-1, -1], [5, -1]]


def test_untrained_items_compete_when_asked_for(tmp_path: Path) -> None:
    retriever, _ = retriever_of(candidates="all")
    ranking = retriever.rank(bucket_of(tmp_path, HISTORIES, TIMES), 4)
    assert 6 in ranking.ids[0].tolist()
    assert ranking.ids[1].tolist() == [3, 4, 2, 5]
    assert retriever.popular(5)[1].tolist() == [3, 4, 2, 5, 6]


def test_a_wrong_k_is_named(tmp_path: Path) -> None:
    retriever, _ = retriever_of()
    with pytest.raises(ValueError, match=r"k \(0\) must be at least 1"):
        retriever.rank(bucket_of(tmp_path, HISTORIES, TIMES), 0)


def test_arrange_fills_unknown_users_with_popular_items() -> None:
    ranking = Ranking(torch.tensor([[7], [8]]), torch.tensor([[0.7], [0.8]]), torch.zeros(2) > 0)
    place = pa.array([1, None, 0])
    found = arrange(ranking, place, (torch.tensor([9.0]), torch.tensor([3])))
    assert found.ids[:, 0].tolist() == [8, 3, 7]
    np.testing.assert_allclose(found.scores[:, 0], [0.8, 9.0, 0.7])
    assert found.is_popular.tolist() == [False, True, False]
    assert join([], 4).ids.shape == (0, 4)
