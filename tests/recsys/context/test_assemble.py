import pytest
import torch
from tiny_world import START, USER_FEATURES, User, write_dataset

from recsys.context.assemble import assemble
from recsys.context.config import ContextConfig
from recsys.context.history import Window
from recsys.data.dataset import PreparedDataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    facts = (
        {"country": 2, "likes": [2, 4], "age": 0.5},
        {"country": 0, "likes": [], "age": -1.0},
        {"country": 3, "likes": [3], "age": 0.0},
    )
    users = [User(item=[2, 3, 4], train_end=3, behavior=[3, 4, 4], user=f) for f in facts]
    return write_dataset(
        tmp_path_factory.mktemp("assemble"),
        users,
        num_trained=3,
        behaviors=("click", "cart"),
        user_features=USER_FEATURES,
    )


def build(dataset: PreparedDataset, cut: list[list[int]], **options: object):
    bucket, cuts = dataset.buckets[0], torch.tensor(cut)
    rows = torch.tensor([2, 0])
    return assemble(
        bucket,
        dataset.manifest,
        ContextConfig(**options),  # type: ignore[arg-type]
        rows=rows,
        window=Window(bucket.offsets[rows], torch.tensor([3, 2])),
        cut=cuts,
        is_real=cuts > 0,
        timestamp=torch.full_like(cuts, START + 7200),
    )


def test_users_bring_their_own_features_in_the_order_asked(dataset: PreparedDataset) -> None:
    context, _ = build(dataset, [[1], [1]])
    assert context.user["country"].tolist() == [3, 2]
    assert context.user["age"].tolist() == [0.0, 0.5]
    assert context.user["likes"].tolist() == [[3, 0], [2, 4]]


def test_the_gap_of_a_request_is_the_time_since_the_last_event_it_sees(
    dataset: PreparedDataset,
) -> None:
    context, _ = build(dataset, [[1, 2, 3], [2, 0, 0]])
    # Events at 0 h, 1 h, 2 h; asked at 2 h; a request that sees nothing has no gap.
    two_hours, one_hour, none = 1 + 12, 1 + 11, 1
    assert context.requests.gap.tolist() == [[two_hours, one_hour, none], [one_hour, 0, 0]]
    assert context.requests.cut.tolist() == [[1, 2, 3], [2, 0, 0]]
    assert context.requests.situation["hour"].tolist() == [[1, 1, 1], [1, 1, 1]]  # 00:13 UTC
    assert context.requests.situation["weekday"].tolist() == [[3, 3, 3], [3, 3, 3]]  # Wednesday


def test_cuts_move_along_with_boundary_tokens_and_stop_before_the_next_one(
    dataset: PreparedDataset,
) -> None:
    context, moved_to = build(dataset, [[1, 2, 3], [1, 2, 0]], block_by="behavior")
    assert context.history.item.tolist() == [[2, 0, 3, 4], [2, 0, 3, 0]]
    assert moved_to[0].tolist() == [0, 2, 3]
    assert context.requests.cut.tolist() == [[1, 3, 4], [1, 3, 0]]
    assert context.requests.gap.tolist() == [[13, 12, 1], [13, 12, 0]]
