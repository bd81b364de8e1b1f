import json
import math

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipelines import peer_rectools as peer

FAR = np.iinfo(np.int32).max


def small_split():
    # User 7 by order: 20 10 30 | 40 | 50, where 40 and 50 have no other event. User 8: 10 30.
    # User 9 has equal orders: rows 10 20 | 30 | 10.
    rows = [
        (9, 10, 1), (7, 50, 9), (8, 30, 2), (7, 10, 2), (9, 20, 1), (7, 20, 1),
        (8, 10, 1), (9, 30, 1), (7, 40, 5), (7, 30, 3), (9, 10, 1),
    ]  # fmt: skip
    users, items, order = zip(*rows, strict=True)
    return peer.leave_one_out(users, items, order)


def test_leave_one_out_holds_out_the_last_two_events_by_order_and_then_row():
    split = small_split()
    # Item codes are 10 20 30 40 50 -> 0 1 2 3 4, user codes 7 8 9 -> 0 1 2.
    assert split.user_ids.tolist() == [7, 8, 9]
    assert split.history(0, test=False).tolist() == [1, 0, 2]
    assert split.history(0, test=True).tolist() == [1, 0, 2, 3]
    assert (split.target(0, test=False), split.target(0, test=True)) == (3, 4)
    assert split.history(2, test=False).tolist() == [0, 1]
    assert (split.target(2, test=False), split.target(2, test=True)) == (2, 0)


def test_leave_one_out_keeps_a_user_with_two_events_for_training_only():
    split = small_split()
    assert split.evaluated.tolist() == [0, 2]
    assert split.train_users.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert split.train_items.tolist() == [1, 0, 2, 0, 2, 0, 1]
    assert split.catalogue.tolist() == [0, 1, 2]


def test_leave_one_out_refuses_missing_orders_and_no_events():
    with pytest.raises(ValueError, match="row 1 has none"):
        peer.leave_one_out([1, 1], [1, 2], [0.0, math.nan])
    with pytest.raises(ValueError, match=r"\(0 rows\)"):
        peer.leave_one_out([], [], [])


def test_count_ranks_counts_ties_against_the_target_and_skips_seen_items():
    scores = np.array([[3.0, 1.0, 2.0, 1.0], [3.0, 1.0, 2.0, 1.0], [5.0, 0.0, 0.0, 0.0]])
    # Row 0: 3, 2 and the other 1 are at least 1. Row 1: the 3 was seen. Row 2: the best.
    ranks = peer.count_ranks(
        scores.astype(np.float32), np.array([1, 1, 0]), np.array([1]), np.array([0])
    )
    assert ranks.tolist() == [3, 2, 0]


def test_count_ranks_calls_an_unreachable_target_a_miss():
    scores = np.array([[1.0, 2.0], [-np.inf, 2.0], [1.0, 2.0]], dtype=np.float32)
    # Outside the catalogue, without an embedding, already seen.
    ranks = peer.count_ranks(scores, np.array([-1, 0, 1]), np.array([2]), np.array([1]))
    assert ranks.tolist() == [FAR, FAR, FAR]


def test_count_ranks_refuses_nan():
    scores = np.array([[np.nan, 1.0]], dtype=np.float32)
    with pytest.raises(ValueError, match="1 NaN"):
        peer.count_ranks(scores, np.array([0]), np.array([0]), np.array([1]))


def test_rank_metrics_keep_misses_in_the_denominator():
    # Ranks count from 0: the second is a hit at 10 with gain 1 / log2(4), the third only at 20.
    metrics = peer.rank_metrics(np.array([0, 2, 10, FAR]))
    assert metrics["hr@10"] == 0.5
    assert metrics["ndcg@10"] == pytest.approx((1 + 0.5) / 4)
    recalls = [metrics[f"recall@{k}"] for k in (1, 5, 10, 20, 50, 100)]
    assert recalls == [0.25, 0.5, 0.5, 0.75, 0.75, 0.75]


def test_results_are_written_whole(tmp_path):
    split = small_split()
    peer.write_ranks(tmp_path / "ranks.parquet", split, np.array([4, FAR]))
    peer.write_json(tmp_path / "result.json", {"epochs": 2})
    table = pq.read_table(tmp_path / "ranks.parquet").to_pandas()
    assert table.to_dict("list") == {"user_id": [7, 9], "rank": [4, FAR]}
    assert json.loads((tmp_path / "result.json").read_text()) == {"epochs": 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ranks.parquet", "result.json"]


def test_a_missing_file_and_an_unset_order_are_one_line_and_exit_1(tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert peer.main(["--events", str(tmp_path / "absent.parquet"), *out]) == 1
    frame = pd.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "seq_pos": [0.0, None]})
    frame.to_parquet(tmp_path / "events.parquet")
    assert peer.main(["--events", str(tmp_path / "events.parquet"), *out]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "row 1 has none" in lines[1]
