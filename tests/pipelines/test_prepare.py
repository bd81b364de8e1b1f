import logging
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_logs import TinyLogs

from pipelines import prepare as job
from pipelines.__main__ import JOBS, main
from recsys.data.dataset import PreparedDataset


def flags(logs: TinyLogs, out: Path, *more: str) -> list[str]:
    return ["prepare", "--events", str(logs.events), "--out", str(out), "--coarse", "none", *more]


def test_the_job_writes_a_data_set_and_one_table(
    tiny_logs: TinyLogs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(flags(tiny_logs, out, "--funnel", "click", "cart", "order")) == 0
    assert PreparedDataset(out).manifest.funnel == ("click", "cart", "order")
    printed = capsys.readouterr().out
    for expected in ("rows in", "600", "rejected", "times read as", "s in 1 file", "split"):
        assert expected in printed


def test_the_job_starts_without_torch() -> None:
    """Importing it takes about as long as sorting two million events does."""
    code = "import sys, pipelines.prepare; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(job.__file__).parents[1])


def test_lists_that_were_shown_have_lines_of_their_own(
    tiny_logs: TinyLogs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = pq.read_table(tiny_logs.events).slice(0, 3).to_pydict()
    table = {
        "user_id": [*events["user_id"][:2], "stranger"],
        "timestamp": events["timestamp"],
        "hotels": [["i1", "i2"], ["i3"], ["i4"]],
        "clicked_item": ["i2", None, None],
    }
    pq.write_table(pa.table(table), tmp_path / "shown.parquet")
    out = tmp_path / "out"
    more = ("--impressions", str(tmp_path / "shown.parquet"), "--impression-columns.item-ids",
            "hotels", "--negative-feedback", "--funnel", "click", "cart", "order")  # fmt: skip
    assert main(flags(tiny_logs, out, *more)) == 0
    manifest = PreparedDataset(out).manifest
    assert manifest.num_impressions == 2
    assert manifest.negative_feedback
    printed = " ".join(capsys.readouterr().out.split())
    for expected in ("lists shown", "2, 3 items", "user_without_history 1", "rejects"):
        assert expected in printed


def test_nested_flags_and_none_reach_the_config(tiny_logs: TinyLogs, tmp_path: Path) -> None:
    table = pq.read_table(tiny_logs.events)
    table = table.append_column("step", [range(len(table))]).drop_columns("timestamp")
    pq.write_table(table, tiny_logs.events)
    more = ("--columns.timestamp", "None", "--columns.order", "step", "--split.kind",
            "leave_one_out")  # fmt: skip
    assert main(flags(tiny_logs, tmp_path / "out", *more)) == 0
    assert not PreparedDataset(tmp_path / "out").manifest.has_time


def test_a_key_hides_the_users(
    tiny_logs: TinyLogs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", "0123456789abcdef")
    more = ("--pseudonymise.key-variable", "KEY")
    assert main(flags(tiny_logs, tmp_path / "out", *more)) == 0
    (bucket,) = PreparedDataset(tmp_path / "out").buckets
    assert {len(u) for u in bucket.user_ids.to_pylist()} == {32}


def test_a_job_that_fails_is_one_line_with_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["prepare", "--events", str(tmp_path / "absent"), "--out", str(tmp_path / "o")]) == 1
    )
    printed = capsys.readouterr()
    last = printed.err.strip().splitlines()[-1]
    assert printed.out == ""
    assert "prepare failed" in last
    assert "absent does not exist." in last
    log = Path(last.rsplit("Log: ", 1)[1])
    assert "Traceback" in log.read_text()
    assert "Traceback" not in printed.err
    log.unlink()


def test_rejects_above_the_limit_are_told_with_their_place(
    tiny_logs: TinyLogs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(tiny_logs.events)
    times = [str(t) if n % 3 else "soon" for n, t in enumerate(table["timestamp"].to_pylist())]
    pq.write_table(table.set_column(2, "timestamp", [times]), tiny_logs.events)
    assert main(flags(tiny_logs, tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert "200 of 600 rows cannot be used (unparsable_timestamp 200)" in error
    assert str(tmp_path / "out.rejects") in error
    Path(error.strip().rsplit("Log: ", 1)[1]).unlink()


@pytest.mark.parametrize(
    "arguments", [[], ["bake"], ["prepare", "--bogus", "1"], ["prepare", "--coarse", "purple"]]
)
def test_a_wrong_command_exits_with_two(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err + printed.out


def test_help_lists_every_job_and_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in JOBS)
    assert main(["prepare", "--help"]) == 0
    printed = capsys.readouterr().out
    for flag in ("--events", "--columns.user-id", "--split.kind", "--pseudonymise.key-file"):
        assert flag in printed


def test_the_log_is_closed_when_a_job_ends(tiny_logs: TinyLogs, tmp_path: Path) -> None:
    main(flags(tiny_logs, tmp_path / "out"))
    assert logging.getLogger("recsys").handlers == []


def test_the_head_of_the_file_shows_a_command_that_exists() -> None:
    assert "python -m pipelines prepare --events" in (job.__doc__ or "")
