import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

import recsys.scoring.batch as batch
from recsys.cascade.recommender import Recommender
from recsys.privacy.pseudonymise import Pseudonymiser
from recsys.retrieval.approximate import HnswConfig
from recsys.scoring.batch import ColumnNames, ScoreConfig, score
from recsys.scoring.output import OutputFolder


@pytest.fixture
def config(log: pd.DataFrame, model_folder: Path, tmp_path: Path) -> ScoreConfig:
    """Two files of events, four shards."""
    (tmp_path / "events").mkdir()
    half = len(log) // 2
    log.iloc[:half].to_parquet(tmp_path / "events" / "a.parquet", index=False)
    log.iloc[half:].to_parquet(tmp_path / "events" / "b.parquet", index=False)
    return ScoreConfig(
        model=model_folder,
        events=(str(tmp_path / "events"),),
        out=tmp_path / "scores",
        k=4,
        num_buckets=4,
        batch_size=8,
    )


def rows_of(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder)


def sorted_rows(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values(["user_id", "rank"]).reset_index(drop=True)


def test_a_job_writes_what_recommend_returns(config: ScoreConfig, log: pd.DataFrame) -> None:
    report = score(config)
    expected = Recommender.from_pretrained(config.model).recommend(log, 4)
    frame = sorted_rows(rows_of(config.out))
    pd.testing.assert_frame_equal(frame, sorted_rows(expected), rtol=1e-4)
    assert (report.rows, report.users, report.users_popular, report.users_short) == (240, 60, 0, 0)
    assert report.events == len(log)
    assert len(list(config.out.glob("part-*.parquet"))) == report.shards == 4
    assert json.loads((config.out / "_manifest.json").read_text())["rows"] == 240
    assert (config.out / "_SUCCESS").exists()


def test_stretches_and_buckets_do_not_change_the_rows(
    config: ScoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(config)
    monkeypatch.setattr(batch, "ROWS_PER_GROUP", 12)
    other = replace(config, out=tmp_path / "other", num_buckets=1, batch_size=3)
    score(other)
    pd.testing.assert_frame_equal(
        sorted_rows(rows_of(config.out)), sorted_rows(rows_of(other.out)), rtol=1e-4
    )
    assert pq.ParquetFile(other.out / "part-00000.parquet").num_row_groups == 20


def test_a_job_that_fails_midway_goes_on_where_it_stopped(
    config: ScoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = replace(config, out=tmp_path / "whole")
    score(whole)
    commit = OutputFolder.commit

    def failing(self: OutputFolder, bucket: int, counts: dict[str, int]) -> None:
        if bucket == 2:
            raise RuntimeError("power cut")
        commit(self, bucket, counts)

    monkeypatch.setattr(OutputFolder, "commit", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        score(config)
    monkeypatch.undo()
    assert not (config.out / "_SUCCESS").exists()
    assert len(rows_of(config.out)) == pq.read_table(config.out).num_rows  # still one clean table
    first = (config.out / "part-00000.parquet").stat().st_mtime_ns
    report = score(config)
    assert report.shards_resumed == 2
    assert (config.out / "part-00000.parquet").stat().st_mtime_ns == first
    pd.testing.assert_frame_equal(rows_of(config.out), rows_of(whole.out), check_exact=True)
    assert (report.rows, report.users) == (240, 60)


KILLED = """
import os, sys
from pathlib import Path
from recsys.scoring.batch import ScoreConfig, score
from recsys.scoring.output import OutputFolder
commit = OutputFolder.commit
def killed(self, bucket, counts):
    commit(self, bucket, counts) if bucket == 0 else os._exit(9)
OutputFolder.commit = killed
model, events, out = sys.argv[1:]
sizes = {"k": 4, "num_buckets": 4, "batch_size": 8}
score(ScoreConfig(model=Path(model), events=(events,), out=Path(out), **sizes))
"""


def test_a_killed_process_leaves_what_a_new_one_completes(
    config: ScoreConfig, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLED, str(config.model), config.events[0], str(config.out)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    dead = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert dead.returncode == 9, dead.stderr
    assert [p.name for p in config.out.glob("part-*")] == ["part-00000.parquet"]
    assert score(config).shards_resumed == 1
    whole = replace(config, out=tmp_path / "whole")
    score(whole)
    pd.testing.assert_frame_equal(rows_of(config.out), rows_of(whole.out))
    assert not list(config.out.glob(".part-*"))


def test_a_complete_job_is_not_run_again(
    config: ScoreConfig, caplog: pytest.LogCaptureFixture
) -> None:
    report = score(config)
    before = (config.out / "part-00001.parquet").stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        assert score(config) == report
    assert "is complete already" in caplog.text
    assert (config.out / "part-00001.parquet").stat().st_mtime_ns == before


def test_other_arguments_and_other_inputs_are_refused_unless_overwriting(
    config: ScoreConfig, log: pd.DataFrame
) -> None:
    score(config)
    with pytest.raises(ValueError, match=r"another job \(k was 4, is 3\); pass --overwrite"):
        score(replace(config, k=3))
    log.iloc[:50].to_parquet(Path(config.events[0]) / "c.parquet", index=False)
    with pytest.raises(ValueError, match=r"another job \(events changed\)"):
        score(config)
    assert score(replace(config, k=3, overwrite=True)).rows == 180
    assert len(rows_of(config.out)) == 180


def test_a_damaged_file_is_named_and_can_be_skipped(
    config: ScoreConfig, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = Path(config.events[0]) / "b.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(ValueError, match="b.parquet is not a readable parquet file"):
        score(config)
    with caplog.at_level(logging.WARNING):
        report = score(replace(config, on_bad_file="skip"))
    assert "b.parquet" in caplog.text
    assert 0 < report.events < 400
    assert [name for name, *_ in report.identity["events"]] == ["events/a.parquet"]


def test_bad_rows_and_unknown_items_are_counted_and_kept(
    config: ScoreConfig, tmp_path: Path
) -> None:
    events = pd.DataFrame(
        {
            "user_id": ["a", "a", "b", "c", "c"],
            "item_id": ["i1", None, "new", "i2", "new"],
            "timestamp": [5, 6, 7, 8, 9],
            "behavior": ["view"] * 5,
        }
    )
    events.to_parquet(tmp_path / "new.parquet", index=False)
    report = score(
        replace(config, events=(str(tmp_path / "new.parquet"),), max_reject_fraction=0.5)
    )
    assert report.rejects == {"null_item_id": 1}
    assert len(pq.read_table(config.out / "_rejects")) == 1
    assert (report.users, report.users_popular, report.unknown_event_share) == (3, 1, 0.5)
    frame = rows_of(config.out)
    assert frame[frame["user_id"] == "b"]["source"].tolist() == ["popular"] * 4


def test_as_of_hides_what_came_later(config: ScoreConfig, log: pd.DataFrame) -> None:
    moment = int(log["timestamp"].median())
    report = score(replace(config, as_of=str(moment)))
    expected = Recommender.from_pretrained(config.model).recommend(log, 4, as_of=moment)
    assert report.as_of_s == moment
    assert report.users_popular == (expected["source"] == "popular").sum() // 4
    pd.testing.assert_frame_equal(
        sorted_rows(rows_of(config.out)), sorted_rows(expected), rtol=1e-4
    )


def test_integer_ids_stay_integers_and_short_lists_are_counted(
    config: ScoreConfig, log: pd.DataFrame, tmp_path: Path
) -> None:
    numbered = log.assign(user_id=log["user_id"].str[1:].astype(int))
    numbered.to_parquet(tmp_path / "numbered.parquet", index=False)
    report = score(replace(config, events=(str(tmp_path / "numbered.parquet"),), k=29))
    frame = rows_of(config.out)
    assert sorted(frame["user_id"].unique()) == list(range(60))
    sizes = frame.groupby("user_id").size()
    seen = log.groupby("user_id")["item_id"].nunique()
    assert sizes.tolist() == (30 - seen).clip(upper=29).tolist()
    assert report.users_short == (sizes < 29).sum()


def test_a_cascade_job_writes_what_recommend_returns_and_resumes(
    config: ScoreConfig,
    ranking_folder: Path,
    log: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(config, model=ranking_folder, num_candidates=3, final_score="p_view * p_cart")
    commit = OutputFolder.commit

    def failing(self: OutputFolder, bucket: int, counts: dict[str, int]) -> None:
        if bucket == 2:
            raise RuntimeError("power cut")
        commit(self, bucket, counts)

    monkeypatch.setattr(OutputFolder, "commit", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        score(config)
    monkeypatch.undo()
    report = score(config)
    assert (report.stages, report.shards_resumed, report.rows) == ("cascade", 2, 240)
    assert report.index_recall is None
    expected = Recommender.from_pretrained(ranking_folder).recommend(
        log, 4, num_candidates=3, final_score="p_view * p_cart"
    )
    frame = sorted_rows(rows_of(config.out))
    assert {"p_view", "p_cart", "retrieval_score"} < set(frame.columns)
    pd.testing.assert_frame_equal(frame, sorted_rows(expected), rtol=1e-4)


def test_whatever_decides_the_rows_makes_another_job(
    config: ScoreConfig, ranking_folder: Path, log: pd.DataFrame, tmp_path: Path
) -> None:
    config = replace(config, model=ranking_folder, num_buckets=1)
    score(config)
    log.to_parquet(tmp_path / "items.parquet", index=False)
    items = (str(tmp_path / "items.parquet"),)
    for change, told in (
        ({"stages": "retrieval"}, "stages was None, is 'retrieval'"),
        ({"num_candidates": 5}, "num_candidates was 200, is 5"),
        ({"final_score": "view"}, "final_score was None, is 'view'"),
        ({"index": "hnsw"}, "index was 'exact', is 'hnsw'"),
        ({"hnsw": HnswConfig(num_links=4)}, "hnsw changed"),
        ({"max_per_category": 2}, "max_per_category was None, is 2"),
        ({"columns": ColumnNames(order="timestamp")}, "columns changed"),
        ({"deny": items}, "deny changed"),
        ({"available": items}, "available changed"),
    ):
        with pytest.raises(ValueError, match=re.escape(told)):
            score(replace(config, **change))
    with pytest.raises(ValueError, match="pseudonyms was None"):
        score(config, pseudonymise=Pseudonymiser(b"sixteen bytes at least"))


def test_lists_of_items_and_limits_bind_and_are_told(
    config: ScoreConfig, model_folder: Path, log: pd.DataFrame, tmp_path: Path
) -> None:
    recommender = Recommender.from_pretrained(model_folder)
    usual = recommender.recommend(log, 2, filter_seen=False)["item_id"].value_counts().index
    names = [usual[0], *sorted(set(log["item_id"]) - {usual[0]})]
    pd.DataFrame({"item_id": [*names[1:], "new"]}).to_parquet(tmp_path / "stock.parquet")
    pd.DataFrame({"item_id": names[2:4]}).to_parquet(tmp_path / "deny.parquet")
    files = {"available": (str(tmp_path / "stock.parquet"),)}
    files["deny"] = (str(tmp_path / "deny.parquet"),)
    report = score(replace(config, filter_seen=False, max_per_category=1, k=2, **files))
    frame = rows_of(config.out)
    assert not {names[0], *names[2:4]} & set(frame["item_id"])
    catalogue = recommender.catalogue
    code = frame["item_id"].map(lambda name: int(catalogue.coarse[catalogue.index[name]]))
    assert not frame.assign(code=code).duplicated(["user_id", "code"]).any()
    assert report.unknown_items == {"unknown_items_in_available": 1, "unknown_items_in_deny": 0}
    assert set(report.policy) == {
        *("available.users", "available.items", "category.users", "category.items")
    }
    assert 0 < report.policy["available.users"] <= 60
    whole = replace(config, out=tmp_path / "one", filter_seen=False, max_per_category=1, k=2)
    again = score(replace(whole, num_buckets=1, batch_size=3, **files))
    assert again.policy == report.policy  # counts add up over shards


def test_a_list_without_the_item_column_is_named(config: ScoreConfig, tmp_path: Path) -> None:
    pd.DataFrame({"sku": ["i1"]}).to_parquet(tmp_path / "deny.parquet")
    with pytest.raises(ValueError, match=r"deny.parquet lists items by .*it has \['sku'\]"):
        score(replace(config, deny=(str(tmp_path / "deny.parquet"),)))


def test_an_approximate_index_is_compared_with_the_exact_one(config: ScoreConfig) -> None:
    report = score(replace(config, index="hnsw", hnsw=HnswConfig(num_links=4)))
    assert report.index_recall is not None
    assert 0.9 < report.index_recall <= 1


def test_pseudonyms_stand_for_users_in_the_scores(config: ScoreConfig, log: pd.DataFrame) -> None:
    hide = Pseudonymiser(b"sixteen bytes at least")
    report = score(config, pseudonymise=hide)
    assert set(rows_of(config.out)["user_id"]) == set(hide(sorted(set(log["user_id"]))))
    assert "sixteen" not in json.dumps(report.identity)


def test_columns_may_have_other_names(config: ScoreConfig, log: pd.DataFrame) -> None:
    plain = score(config)
    expected = rows_of(config.out)
    for name in ("a", "b"):
        path = Path(config.events[0]) / f"{name}.parquet"
        pd.read_parquet(path).rename(columns={"user_id": "who", "timestamp": "ts"}).to_parquet(path)
    named = replace(config, columns=ColumnNames(user_id="who", timestamp="ts"), overwrite=True)
    assert score(named).rows == plain.rows
    pd.testing.assert_frame_equal(rows_of(config.out), expected)


def test_progress_reaches_the_last_user(config: ScoreConfig) -> None:
    told: list[tuple[str, int, int]] = []
    score(config, progress=lambda *step: told.append(step))
    assert told[-1] == ("score", 60, 60)
    assert {stage for stage, *_ in told} >= {"read", "score"}


def test_shards_hold_a_bounded_number_of_events(
    config: ScoreConfig, log: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "EVENTS_PER_SHARD", -(-len(log) // 3))
    assert score(replace(config, num_buckets=0)).shards == 3


def test_wrong_arguments_are_named(config: ScoreConfig) -> None:
    with pytest.raises(ValueError, match=r"k \(0\) must be at least 1"):
        replace(config, k=0)
    with pytest.raises(ValueError, match="events must name at least one"):
        replace(config, events=())
    with pytest.raises(ValueError, match="'tomorrow'"):
        replace(config, as_of="tomorrow")
