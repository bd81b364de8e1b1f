import json
import os
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines import benchmark
from pipelines.benchmarks import bare_sort, setting
from pipelines.benchmarks.figures import Record, Spread, in_turns, ratio
from pipelines.benchmarks.latency import _server, plain_catalogue, random_batch
from pipelines.benchmarks.prepare import PrepareBenchmark
from pipelines.benchmarks.process import finish, private_mib
from pipelines.benchmarks.quality import compare, our_ranks, read_peer_ranks
from pipelines.benchmarks.score import _many_users
from pipelines.benchmarks.setting import Setting, named_run, open_log, untrained
from pipelines.benchmarks.train import one_request_a_row, reasoned
from recsys.batch import ContextBatch, Labels, Requests
from recsys.model.config import (
    DataSizes,
    EncoderConfig,
    RankerConfig,
    ReasonerConfig,
    RecommenderConfig,
)
from recsys.model.onepiece import OnePiece
from recsys.model.save import save_pretrained


@pytest.fixture
def events(tmp_path):
    """Twelve users of four events each, on seven items, ordered by seq_pos."""
    path = tmp_path / "some-log" / "events.parquet"
    path.parent.mkdir()
    users = np.repeat(np.arange(12), 4)
    table = {
        "user_id": users,
        "item_id": (users + np.tile([0, 1, 2, 3], 12)) % 7,
        "seq_pos": np.tile([0, 1, 2, 3], 12),
    }
    pq.write_table(pa.table(table), path)
    return path


def test_spread_and_ratio_pair_neighbours_and_show_the_range():
    found = ratio([10.0, 30.0, 20.0], [10.0, 10.0, 10.0])
    assert (found.median, found.low, found.high) == (2.0, 1.0, 3.0)
    assert Spread.of([0.5]).show(" s", 1) == "0.5 s"
    with pytest.raises(ValueError, match=r"over \(1\) and under \(2\)"):
        ratio([1.0], [1.0, 2.0])


def test_in_turns_alternates_the_sides():
    calls = []
    found = in_turns(2, {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")})
    assert calls == ["a", "b", "a", "b"]
    assert found == {"a": [None, None], "b": [None, None]}


def test_a_record_saves_what_made_the_figures(tmp_path, capsys):
    record = Record("train", Setting(out=tmp_path / "new", threads=1))
    record.command(["python", "-m", "x y"], {"A": "1"})
    record.command(["python", "-m", "x y"], {"A": "1"})
    path = record.save({"speed": Spread.of([1.0, 2.0])}, [("speed", "fast")])
    saved = json.loads(path.read_text())
    assert saved["commands"] == ["A=1 python -m 'x y'"]
    assert saved["results"]["speed"] == {
        "median": 1.5, "low": 1.0, "high": 2.0, "values": [1.0, 2.0],
    }  # fmt: skip
    assert saved["threads"] == 1
    assert saved["ours"]["versions"]["torch"] == torch.__version__
    assert "fast" in capsys.readouterr().out


def test_finish_measures_the_memory_of_the_whole_tree_and_says_why_a_command_failed():
    hold = "x = bytearray(40_000_000); import time; time.sleep(0.4); print('done')"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    found = finish([sys.executable, "-c", child])
    assert found.output.strip() == "done"
    assert found.seconds > 0.4
    assert found.peak_private_mib > 38
    assert private_mib(os.getpid()) > 1
    with pytest.raises(ValueError, match="failed with 3: no luck"):
        finish([sys.executable, "-c", "import sys; print('no luck', file=sys.stderr); sys.exit(3)"])


def test_a_setting_says_what_does_not_go_together(tmp_path):
    with pytest.raises(ValueError, match="--data needs --events"):
        Setting(out=tmp_path, data=tmp_path)
    with pytest.raises(ValueError, match="--synthetic makes its own log"):
        Setting(out=tmp_path, events=tmp_path, synthetic=True)
    with pytest.raises(ValueError, match=r"repeats \(0\)"):
        Setting(out=tmp_path, repeats=0)
    with pytest.raises(ValueError, match=r"scale \(0,\)"):
        PrepareBenchmark(scale=(0,))
    with pytest.raises(ValueError, match=r"run \('nothing'\)"):
        named_run("nothing")
    with pytest.raises(ValueError, match=r"run \('ml-1m-prefix'\) has no reasoner"):
        named_run("ml-1m-prefix")


def test_without_a_log_the_way_out_is_named(tmp_path, monkeypatch):
    def nothing(name):
        raise ValueError(f"There is no local copy of {name!r}.")

    monkeypatch.setattr(setting, "locate", nothing)
    with pytest.raises(ValueError, match=r"no local copy of 'ml-1m'. Or pass --synthetic"):
        open_log(Setting(out=tmp_path))


def test_open_log_prepares_once_by_leave_one_out_and_keeps_the_first_users(tmp_path, events):
    log = open_log(Setting(out=tmp_path / "out", events=events))
    manifest = log.dataset.manifest
    assert log.order == "seq_pos"
    assert (manifest.num_users, manifest.counts["events.test"]) == (12, 12)
    assert log.facts["log"] == "some-log"
    again = open_log(Setting(out=tmp_path / "out", events=events))
    assert again.dataset.path == log.dataset.path
    few = open_log(Setting(out=tmp_path / "out", events=events, max_users=5))
    assert few.dataset.manifest.num_users == 5
    assert set(pq.read_table(few.events)["user_id"].to_pylist()) == {0, 1, 2, 3, 4}
    with pytest.raises(ValueError, match="was prepared from 20 events by leave_one_out"):
        open_log(Setting(out=tmp_path / "out", data=few.dataset.path, events=events))


def test_many_users_repeats_every_user_under_other_ids(tmp_path, events):
    table = pq.read_table(_many_users(events, 3, tmp_path / "logs"))
    assert table.num_rows == 3 * 48
    assert len(set(table["user_id"].to_pylist())) == 36


def test_bare_sort_groups_by_user_and_keeps_the_row_order_of_ties(tmp_path):
    frame = pl.DataFrame(
        {"user_id": [2, 1, 2, 2], "item_id": [5, 6, 7, 8], "timestamp": [3, 1, 3, 2],
         "behavior": ["a", "b", "c", "d"]}
    )  # fmt: skip
    (tmp_path / "log").mkdir()
    frame.write_parquet(tmp_path / "log" / "part-0.parquet")
    assert bare_sort.main([str(tmp_path / "log"), str(tmp_path / "out.arrow")]) == 0
    found = pl.read_ipc(tmp_path / "out.arrow")
    assert found["user_id"].to_list() == [1, 2]
    assert found["item_id"].to_list() == [[6], [8, 5, 7]]


def packed_batch():
    """Two rows of five events; row 0 is asked after 1 and 4 events, row 1 after 3."""
    context = random_batch(2, 5, 20)
    zeros = torch.zeros(2, 2, dtype=torch.long)
    requests = Requests(
        cut=torch.tensor([[4, 1], [3, 0]]),
        is_real=torch.tensor([[True, True], [True, False]]),
        timestamp=zeros,
        gap=zeros,
    )
    item = context.history.item
    next_item = torch.cat((item[:, 1:], torch.tensor([[9], [8]])), dim=1)
    tasks = torch.stack((next_item[:, 3], next_item[:, 0]), dim=1)[..., None]
    tasks[1] = torch.stack((next_item[1, 2], torch.tensor(0)))[:, None]
    return ContextBatch(context.history, requests), Labels(next_item, tasks)


def test_one_request_a_row_holds_the_history_before_each_cut():
    batch, labels = packed_batch()
    (first, first_labels), (second, _) = one_request_a_row(batch, labels, rows=2)
    item = batch.history.item
    assert first.requests.cut.tolist() == [[1], [3]]
    assert first.history.lengths.tolist() == [1, 3]
    assert first.history.item[0].tolist() == [int(item[0, 0]), 0, 0]
    assert first.history.item[1].tolist() == item[1, :3].tolist()
    assert first_labels.task_item[:, 0, 0].tolist() == [int(item[0, 1]), int(item[1, 3])]
    assert first_labels.next_item[0].tolist() == [int(item[0, 1]), 0, 0]
    assert second.history.item.tolist() == [item[0, :4].tolist()]
    assert reasoned(labels) == 3


def test_a_request_in_a_row_of_its_own_is_answered_as_in_a_packed_one():
    batch, labels = packed_batch()
    config = RecommenderConfig(
        data=DataSizes(num_items=20, num_trained_items=18, has_time=False),
        encoder=EncoderConfig(width=8, num_layers=1, max_history=5, init_std=0.5),
        reasoner=ReasonerConfig(num_steps=1, zero_init=False),
    )
    torch.manual_seed(0)
    model = OnePiece(config, plain_catalogue(20)).eval()
    packed = model.queries(batch)["step1"]
    (first, _), (second, _) = one_request_a_row(batch, labels, rows=2)
    torch.testing.assert_close(model.queries(first)["step1"][0, 0], packed[0, 1])
    torch.testing.assert_close(model.queries(first)["step1"][1, 0], packed[1, 0])
    torch.testing.assert_close(model.queries(second)["step1"][0, 0], packed[0, 0])


def test_peer_ranks_are_put_in_our_order_of_users(tmp_path):
    path = tmp_path / "ranks.parquet"
    pq.write_table(pa.table({"user_id": [7, 8, 9], "rank": [0, 2147483647, 4]}), path)
    ranks = read_peer_ranks(path, ["9", "7", "8"])
    assert ranks.tolist() == [5.0, 1.0, np.inf]
    with pytest.raises(ValueError, match="holds 3 users, our test part 3, of which 2"):
        read_peer_ranks(path, ["9", "7", "1"])


def test_compare_is_positive_where_ours_ranks_better():
    found = compare(np.array([1.0, 3.0, np.inf]), np.array([11.0, 3.0, np.inf]), replicates=50)
    assert found["recall@10"]["mean"] == pytest.approx(1 / 3)
    assert found["recall@10"]["num_users"] == 3


def test_our_ranks_name_the_users_of_the_test_part(tmp_path, events):
    log = open_log(Setting(out=tmp_path / "out", events=events))
    run = named_run("ml-1m")
    save_pretrained(untrained(run, log.dataset), tmp_path / "model", log.dataset.path)
    users, ranks = our_ranks(tmp_path / "model", log)
    assert sorted(map(int, users)) == list(range(12))
    assert list(ranks) == ["prefix", "step0", "step1", "step2"]
    assert all(1 <= rank <= 7 for rank in ranks["step2"])


def test_latency_runs_small_and_writes_its_figures(tmp_path, capsys):
    flags = ["--catalogues", "300", "--batches", "1", "--thread-counts", "1", "--calls", "2"]
    flags += ["--tasks", "2", "--ranked-users", "2", "--k", "15"]
    assert benchmark.main(["latency", "--out", str(tmp_path), *flags]) == 0
    saved = json.loads((tmp_path / "latency.json").read_text())
    (case,) = saved["results"]["cases"]
    assert (case["items"], case["threads"], case["batch"]) == (300, 1, 1)
    assert case["ms"]["k2/answer"]["p99"] >= case["ms"]["k2/answer"]["p50"] > 0
    (cascade,) = saved["results"]["cascade"]
    assert cascade["ms"]["cascade"]["p50"] > cascade["ms"]["retrieval"]["p50"] / 2 > 0
    speed = cascade["candidates_per_second"]
    assert len(speed["shared"]["values"]) == len(speed["reread"]["values"]) == 5
    assert cascade["shared_over_reread"]["median"] > 0
    told = capsys.readouterr().out
    assert "end to end" in " ".join(told.split())
    assert "cascade" in told


def test_ranking_together_and_apart_rank_the_same_groups():
    server = _server(replace(named_run("ml-1m"), ranker=RankerConfig(decoder="own")), 300, 2, 15, 2)
    batch = random_batch(2, 200, 300)
    groups = server.groups(server.answer(batch))[0]
    assert groups.item.shape == (2, 1, 2, 12)
    seen = []
    server.model.rank_of = lambda state, some: seen.append(some.item)
    server.rank_together(batch, groups)
    server.rank_apart(batch, groups)
    assert torch.equal(seen[0], torch.cat(seen[1:], dim=2))


def test_the_cascade_finds_the_items_of_the_retrieval_in_an_order_of_its_own():
    server = _server(replace(named_run("ml-1m"), ranker=RankerConfig(decoder="own")), 300, 2, 15, 2)
    for parameter in server.model.ranker.parameters():
        torch.nn.init.normal_(parameter)
    batch = random_batch(2, 50, 300)
    first, second = server.answer(batch), server.cascade(batch)
    assert torch.equal(first.sort(dim=1).values, second.sort(dim=1).values)
    assert not torch.equal(first, second)


def test_all_refuses_to_skip_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"skip \['nothing'\]"):
        benchmark.main(["all", "--out", str(tmp_path), "--skip", "nothing"])
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["latency"])
    assert stop.value.code == 2
