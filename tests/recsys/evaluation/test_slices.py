from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys.evaluation.slices import (
    SliceColumn,
    binned,
    external_user_ids,
    popularity_bins,
    slice_columns,
    target_events,
)
from recsys.evaluation.table import UserTable
from recsys.schema import Manifest


def make_table(filter_seen: bool = True) -> UserTable:
    return UserTable(
        user_index=np.array([0, 2, 3]),
        target=np.array([2, 5, 1]),
        history_length=np.array([0, 1, 250]),
        history_popularity=np.zeros(3),
        target_seen=np.array([False, True, False]),
        target_known=np.array([True, True, False]),
        filter_seen=filter_seen,
    )


CATALOGUE = SimpleNamespace(
    num_items=6, num_trained=4, train_count=torch.tensor([0, 0, 5, 3, 1, 1]), coarse=torch.zeros(6)
)


def make_dataset() -> SimpleNamespace:
    """Two buckets of two users; each event's domain is its place in the bucket, plus 2."""

    def bucket(names: list[str], lengths: list[int]) -> SimpleNamespace:
        offsets = torch.tensor([0, *np.cumsum(lengths).tolist()])
        values = torch.arange(int(offsets[-1]), dtype=torch.int16) % 2 + 2
        column = SimpleNamespace(values=values, offsets=offsets)
        return SimpleNamespace(
            num_users=len(names),
            offsets=offsets,
            events={"domain": column, "behavior": column},
            user_ids=pa.chunked_array([names]),
        )

    manifest = Manifest(domains=("books", "games"), behaviors=("view",))
    return SimpleNamespace(
        manifest=manifest, buckets=(bucket(["a", "b"], [2, 2]), bucket(["c", "d"], [3, 251]))
    )


def test_history_length_bins_are_named_by_their_bounds() -> None:
    found = binned(np.array([0, 1, 4, 5, 199, 200]), (0, 1, 5, 200))
    assert found.texts() == ["0", "1–4", "1–4", "5–199", "5–199", "200+"]


def test_head_items_draw_the_first_half_of_the_events() -> None:
    # shares before each item, most popular first: 0, .5, .8, .9
    assert popularity_bins(np.array([0, 0, 5, 3, 1, 1])).tolist() == [3, 3, 0, 1, 2, 2]


def test_targets_are_divided_by_popularity_and_by_being_trained() -> None:
    found = slice_columns(make_table(), CATALOGUE)
    assert found["item_popularity"].texts() == ["head", "tail", "cold"]
    assert found["target"].texts() == ["trained", "trained", "cold"]
    assert found["history_length"].texts() == ["0", "1–4", "200+"]
    assert found["target"].rows("cold").tolist() == [False, False, True]
    assert "repeat" not in found


def test_repeats_are_a_slice_where_they_can_be_hit() -> None:
    found = slice_columns(make_table(filter_seen=False), CATALOGUE)
    assert found["repeat"].texts() == ["new", "repeat", "new"]


def test_domains_are_read_from_the_target_events() -> None:
    dataset = make_dataset()
    assert target_events(dataset, make_table(), "domain").tolist() == [2, 3, 3]
    found = slice_columns(make_table(), CATALOGUE, dataset)
    assert found["domain"].texts() == ["books", "games", "games"]
    assert "behavior" not in found  # one behavior divides nothing


def test_user_ids_come_from_their_bucket() -> None:
    assert external_user_ids(make_dataset(), make_table().user_index) == ["a", "c", "d"]


def test_codes_must_have_labels() -> None:
    with pytest.raises(ValueError, match="codes reach 2, but there are 1 labels"):
        SliceColumn(("a",), np.array([2]))


def test_a_request_may_be_in_no_slice() -> None:
    assert SliceColumn(("a",), np.array([-1, 0])).texts() == [None, "a"]
