"""The catalogue of public data sets."""

from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.data import catalogue
from recsys.data.catalogue import SOURCES, Download, convert, download, locate, source, tables

README = Path(__file__).parents[3] / "data" / "README.md"


def test_every_data_set_states_terms_citation_and_a_split_that_suits_its_columns() -> None:
    for name, one in SOURCES.items():
        assert name == one.name
        assert one.terms
        assert one.citation
        assert (one.columns is None) == (one.split is None)
        if one.columns and one.split and one.split.kind == "time":
            assert one.columns.timestamp is not None
            assert one.columns.order is None
        if one.columns:
            declared = {*one.columns.item_features, *one.columns.user_features}
            assert {*one.text_features, *one.categorical_features} <= declared
        assert (one.converter is None) == (not one.published_files)


def test_checksums_are_well_formed_and_addresses_are_http() -> None:
    sizes = {"md5": 32, "sha256": 64}
    for one in (file for known in SOURCES.values() for file in known.downloads):
        assert one.url.startswith(("http://", "https://"))
        if one.checksum:
            kind, digest = one.checksum.split(":")
            assert len(digest) == sizes[kind]
            int(digest, 16)


def test_the_readme_lists_every_data_set() -> None:
    text = README.read_text(encoding="utf-8")
    assert [name for name in SOURCES if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_local_copies_have_the_recommended_columns(name: str) -> None:
    try:
        found = tables(name)
    except ValueError:
        pytest.skip(f"no local copy of {name}")
    columns = source(name).columns
    if columns is None:
        return
    names = set(pq.read_schema(found["events"]).names)
    wanted = {columns.user_id, columns.item_id, columns.timestamp, columns.order, columns.behavior}
    assert wanted - {None} <= names
    if columns.item_features:
        assert set(columns.item_features) <= set(pq.read_schema(found["items"]).names)
    if columns.user_features:
        assert set(columns.user_features) <= set(pq.read_schema(found["users"]).names)
    kinds = set(
        pq.read_table(found["events"], columns=["behavior"])["behavior"].unique().to_pylist()
    )
    assert set(source(name).funnel) <= kinds


def test_a_copy_named_by_the_environment_comes_first(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path))
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    pq.write_table(pa.table({"user_id": [1]}), folder / "events.parquet")
    assert locate("ml-100k") == folder
    assert tables("ml-100k") == {"events": folder / "events.parquet"}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("ml-20m", r"download\('ml-20m', folder\)"),
        ("retailrocket", r"get events\.csv, .* from https://www\.kaggle"),
        ("alibaba-brand-s1", "README"),
    ],
)
def test_a_missing_copy_is_told_with_the_way_to_get_one(tmp_path, monkeypatch, name, way) -> None:
    monkeypatch.setattr(catalogue, "_folders", lambda: [tmp_path])
    with pytest.raises(ValueError, match=f"no local copy of '{name}'.*{way}.*RECSYS_DATA"):
        locate(name)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'ml-2m'.*'ml-1m'"):
        source("ml-2m")


def test_download_fetches_every_file_with_its_checksum(tmp_path, monkeypatch) -> None:
    asked = []

    def fake(url: str, target: Path, *, checksum: str | None) -> Path:
        asked.append((url, target, checksum))
        return target

    monkeypatch.setattr(catalogue, "fetch", fake)
    assert download("ml-1m", tmp_path) == [tmp_path / "ml-1m.zip"]
    assert isinstance(source("ml-1m").downloads[0], Download)
    assert asked[0][2] == source("ml-1m").downloads[0].checksum
    assert len(download("amazon-sports", tmp_path)) == 2


def test_a_data_set_behind_an_account_cannot_be_downloaded(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"'retailrocket'.*account.*events\.csv.*kaggle.*BY-NC-SA"):
        download("retailrocket", tmp_path)


def test_convert_writes_the_tables(tmp_path) -> None:
    (tmp_path / "UserBehavior.csv").write_text("1,2,3,pv,1511544070\n")
    assert convert("taobao-ub-sample", tmp_path, tmp_path / "out") == tmp_path / "out"
    assert pq.read_table(tmp_path / "out" / "events.parquet").num_rows == 1


def test_convert_refuses_a_set_without_a_converter(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"'trivago-rsc19-100k' has no converter.*'ml-1m'"):
        convert("trivago-rsc19-100k", tmp_path, tmp_path)


def test_every_field_of_a_data_source_is_used_somewhere() -> None:
    plain = {f.name for f in fields(catalogue.DataSource)}
    used = {name for one in SOURCES.values() for name in plain if getattr(one, name)}
    assert used == plain
