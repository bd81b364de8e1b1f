import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.idmap import GrowingMap, IdMap, row_sources, stable_hash


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_an_integer_and_its_text_hash_alike(ids: list[int]) -> None:
    numbers, texts = pa.array(ids, pa.int64()), pa.array([str(i) for i in ids])
    assert stable_hash(numbers).tolist() == stable_hash(texts).tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=8), min_size=1, max_size=12))
def test_a_hash_does_not_depend_on_the_neighbours(ids: list[str]) -> None:
    together = stable_hash(pa.array(ids, pa.string())).tolist()
    assert together == [int(stable_hash(pa.array([i], pa.string()))[0]) for i in ids]


def test_the_hash_is_the_same_on_every_machine_and_in_every_version() -> None:
    found = stable_hash(pa.array(["7", "ann", "", "é"])).tolist()
    assert found == [6169222545413680960, 14306437376028982300, 0, 13424142546453023049]


def test_texts_that_look_like_numbers_but_are_not_canonical_are_texts() -> None:
    seven, padded = stable_hash(pa.array(["7", "007"]))
    assert seven != padded


def test_a_sliced_array_hashes_as_its_own_values() -> None:
    whole = pa.array(["a", "bb", "ccc", "dd"])
    assert stable_hash(whole.slice(1, 2)).tolist() == stable_hash(whole).tolist()[1:3]


def test_sequential_ids_spread_evenly_over_buckets() -> None:
    for ids in (pa.array(range(8000)), pa.array([f"user{i}" for i in range(8000)])):
        sizes = [int((stable_hash(ids) % 8 == b).sum()) for b in range(8)]
        assert min(sizes) > 850
        assert max(sizes) < 1150


def test_a_growing_map_numbers_values_by_first_sight() -> None:
    codes = GrowingMap()
    assert codes.encode(pa.array(["b", "a", None, "b"])).tolist() == [0, 1, -1, 0]
    column = pa.DictionaryArray.from_arrays(pa.array([1, 0, None]), pa.array(["c", "a"]))
    assert codes.encode_column(column).tolist() == [1, 2, -1]
    assert codes.texts() == ["b", "a", "c"]


def test_decoding_an_id_beyond_the_vocabulary_names_it() -> None:
    with pytest.raises(ValueError, match=r"id \(4\) must be below 4"):
        IdMap(["a", "b"]).decode([4])


def test_a_repeated_value_is_refused() -> None:
    with pytest.raises(ValueError, match="'a' appears twice"):
        IdMap(["a", "b", "a"])


def test_rows_of_a_new_vocabulary_are_found_in_the_old_one_by_their_value() -> None:
    assert row_sources(["x", "y"], ["z", "y", "x"]).tolist() == [0, 1, 1, 3, 2]
    assert row_sources([], ["z"], 3, 0).tolist() == [0, 1, 2, 0]
    assert row_sources(["x"], []).tolist() == [0, 1]
