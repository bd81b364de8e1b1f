import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

import recsys.scoring.batch as batch
from recsys.cascade.recommender import Recommender
from recsys.scoring.batch import ScoreConfig, score
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


def test_progress_reaches_the_last_user(config: ScoreConfig) -> None:
    told: list[tuple[str, int, int]] = []
    score(config, progress=lambda *step: told.append(step))
    assert told[-1] == ("score", 60, 60)
    assert {stage for stage, *_ in told} >= {"read", "score"}


def test_wrong_arguments_are_named(config: ScoreConfig) -> None:
    with pytest.raises(ValueError, match=r"k \(0\) must be at least 1"):
        replace(config, k=0)
    with pytest.raises(ValueError, match="events must name at least one"):
        replace(config, events=())
    with pytest.raises(ValueError, match="'tomorrow'"):
        replace(config, as_of="tomorrow")
