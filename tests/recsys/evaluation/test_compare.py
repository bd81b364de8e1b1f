import dataclasses
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.config import read_json, write_json
from recsys.evaluation.compare import compare, read_report, write_report
from recsys.evaluation.protocol import EvaluationProtocol
from recsys.evaluation.report import Report, build_report
from recsys.evaluation.slices import SliceColumn
from recsys.evaluation.table import UserTable

ITEMS = [None, None, "a", "b", "c"]


def write(folder: Path, ranks: dict[tuple[str, str], list[float]], users: list[str], **protocol):
    size = len(users)
    names = sorted(set(users))
    table = UserTable(
        user_index=np.array([names.index(u) for u in users]),
        target=np.arange(size) % 3 + 2,
        history_length=np.arange(size) + 1,
        history_popularity=np.zeros(size),
        target_seen=np.zeros(size, dtype=bool),
        target_known=np.ones(size, dtype=bool),
        ranks={key: np.array(values) for key, values in ranks.items()},
        answers=tuple(ranks)[-1:],
        k=(1, 10),
    )
    report = build_report(table, EvaluationProtocol(**protocol), replicates=20)
    slices = {"half": SliceColumn(("x", "y"), np.arange(size) % 2)}
    write_report(folder, report, table, user_ids=users, item_ids=ITEMS, slices=slices)
    return folder


def test_ranks_are_written_a_row_a_request_and_head(tmp_path) -> None:
    ranks = {("m", "step0"): [1.0, math.inf], ("m", "step1"): [2.0, 3.0]}
    write(tmp_path / "r", ranks, ["u", "v"])
    found = pq.read_table(tmp_path / "r/ranks.parquet").to_pylist()
    assert found[1] == {
        "user_id": "v",
        "history_length": 2,
        "target": "b",
        "scorer": "m",
        "head": "step0",
        "rank": math.inf,
        "slice.half": "y",
    }
    assert [row["rank"] for row in found] == [1, math.inf, 2, 3]
    assert read_report(tmp_path / "r").heads[0].head == "step0"
    assert not list((tmp_path / "r").glob(".*"))


def test_two_runs_are_compared_user_by_user(tmp_path) -> None:
    key = ("m", "step1")
    a = write(tmp_path / "a", {key: [1.0, 1.0, 20.0, 1.0]}, list("uvwx"), num_users=4)
    b = write(tmp_path / "b", {key: [1.0, 20.0, 20.0]}, list("uvw"), num_users=3)
    found = compare(a, b)
    assert (found.users, found.requests, found.only_a, found.only_b) == (3, 3, 1, 0)
    recall = found.differences[0]
    assert (recall.a, recall.b, recall.metric) == ("m/step1", "m/step1", "recall@10")
    assert recall.mean == pytest.approx(1 / 3)
    assert recall.relative == pytest.approx(1)
    assert compare(b, a).differences[0].mean == pytest.approx(-1 / 3)


def test_requests_of_a_user_are_averaged_before_they_are_compared(tmp_path) -> None:
    key = ("m", "s")
    a = write(tmp_path / "a", {key: [1.0, 1.0, 20.0]}, ["u", "u", "v"])
    b = write(tmp_path / "b", {key: [20.0, 1.0, 20.0]}, ["u", "u", "v"])
    found = compare(a, b)
    assert found.users == 2
    assert found.differences[0].mean == pytest.approx(0.25)


def test_answers_of_unlike_scorers_are_compared(tmp_path) -> None:
    a = write(tmp_path / "a", {("m", "s"): [1.0], ("p", "x"): [3.0]}, ["u"])
    b = write(tmp_path / "b", {("n", "s"): [1.0], ("p", "x"): [3.0], ("n", "z"): [1.0]}, ["u"])
    names = {(d.a, d.b) for d in compare(a, b).differences}
    assert names == {("p/x", "n/z"), ("p/x", "p/x")}


def test_reports_of_unlike_protocols_are_refused(tmp_path) -> None:
    a = write(tmp_path / "a", {("m", "s"): [1.0]}, ["u"])
    b = write(tmp_path / "b", {("m", "s"): [1.0]}, ["u"], filter_seen=False)
    with pytest.raises(ValueError, match=r"differ in filter_seen \(True and False\)"):
        compare(a, b)


def test_reports_of_unlike_data_are_refused(tmp_path) -> None:
    a = write(tmp_path / "a", {("m", "s"): [1.0]}, ["u"])
    b = write(tmp_path / "b", {("m", "s"): [1.0]}, ["v"])
    with pytest.raises(ValueError, match="share no request"):
        compare(a, b)
    table = pq.read_table(b / "ranks.parquet").to_pandas()
    table["user_id"], table["target"] = "u", "c"
    table.to_parquet(b / "ranks.parquet")
    with pytest.raises(ValueError, match="ask for different items"):
        compare(a, b)


def test_reports_without_a_common_list_length_are_refused(tmp_path) -> None:
    a = write(tmp_path / "a", {("m", "s"): [1.0]}, ["u"])
    b = write(tmp_path / "b", {("m", "s"): [1.0]}, ["u"])
    report = dataclasses.replace(read_report(b), k=(7,))
    write_json(b / "report.json", report)
    with pytest.raises(ValueError, match=r"\(1, 10\).*\(7,\): none in common"):
        compare(a, b)


def test_missing_and_foreign_reports_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"nowhere/report.json does not exist"):
        read_report(tmp_path / "nowhere")
    a = write(tmp_path / "a", {("m", "s"): [1.0]}, ["u"])
    (a / "ranks.parquet").unlink()
    with pytest.raises(ValueError, match=r"ranks.parquet cannot be read"):
        compare(a, a)
    values = read_json(a / "report.json")
    write_json(a / "report.json", {**values, "version": 9})
    with pytest.raises(ValueError, match="version 9; this library reads version 1"):
        read_report(a)


def test_each_request_needs_its_user(tmp_path) -> None:
    table = UserTable(*(np.zeros(1, int) for _ in range(6)))
    with pytest.raises(ValueError, match=r"user_ids \(0\) must name the user of each of the 1"):
        write_report(tmp_path, Report(), table, user_ids=[], item_ids=ITEMS, slices={})
