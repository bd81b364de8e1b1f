from pathlib import Path

import pytest
import torch
from line_world import HISTORIES, TIMES, VECTORS, bucket_of, retriever_of

from recsys.retrieval.approximate import FaissIndex, HnswConfig
from recsys.retrieval.index import BruteForceIndex


def test_users_with_a_known_visible_item_can_be_answered(tmp_path: Path) -> None:
    retriever, _ = retriever_of()
    bucket = bucket_of(tmp_path, HISTORIES, TIMES)
    rows = torch.arange(5)
    assert retriever.answerable(bucket, rows).tolist() == [True, False, False, True, True]
    some = retriever.answerable(bucket, rows[[4, 0]], as_of=200)
    assert some.tolist() == [False, True]


def test_what_is_popular_is_what_was_trained_on_most(tmp_path: Path) -> None:
    scores, ids = retriever_of()[0].popular(5)
    assert ids.tolist() == [3, 4, 2, 5, -1]
    assert scores.tolist() == [9.0, 9.0, 5.0, 1.0, -torch.inf]
    allow = torch.arange(7) >= 4
    everything = retriever_of(candidates="all")[0]
    assert everything.popular(3, allow)[1].tolist() == [4, 5, 6]


def test_a_moment_needs_times() -> None:
    retriever_of()[0].check_moment(200)
    with pytest.raises(ValueError, match=r"as_of \(200\) needs times"):
        retriever_of(has_time=False)[0].check_moment(200)


def test_batches_tell_what_was_seen(tmp_path: Path) -> None:
    retriever, _ = retriever_of()
    bucket = bucket_of(tmp_path, HISTORIES, TIMES)
    found = {
        int(row): items[items > 0].tolist()
        for rows, _, seen in retriever.batches(bucket, torch.tensor([3, 0]), batch_size=1)
        for row, items in zip(rows, seen, strict=True)
    }
    assert found == {0: [2, 3], 3: [5, 4, 3, 2]}
    assert not list(retriever.batches(bucket, torch.arange(0)))


def test_the_exact_index_is_the_default_and_its_recall_is_one(tmp_path: Path) -> None:
    retriever, _ = retriever_of()
    assert isinstance(retriever.index, BruteForceIndex)
    assert not retriever.is_approximate
    bucket = bucket_of(tmp_path, HISTORIES, TIMES)
    assert retriever.index_recall(bucket, 3) == 1.0
    assert retriever.index_recall(bucket_of(tmp_path, [[], [1]], [[], [5]]), 3) is None


def test_the_recall_of_an_index_is_the_share_of_the_exact_items_that_it_finds(
    tmp_path: Path,
) -> None:
    retriever, _ = retriever_of(hnsw=HnswConfig(num_links=2))
    assert isinstance(retriever.index, FaissIndex)
    assert retriever.is_approximate
    # An index that has never heard of item 5: of the four exact items of each user it finds three.
    known = torch.tensor([False, False, True, True, True, False, False])
    retriever.index = BruteForceIndex(VECTORS, known)
    assert retriever.index_recall(bucket_of(tmp_path, HISTORIES, TIMES), 4) == 0.75
