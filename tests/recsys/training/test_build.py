from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_world import User, write_dataset

from recsys.data.cooccurrence import cooccurrence
from recsys.data.dataset import PreparedDataset
from recsys.training.build import build_objective, graph_teacher
from recsys.training.objective import ObjectiveConfig


def test_training_events_are_those_before_each_users_cut_in_order(tmp_path: Path) -> None:
    users = [
        User(item=[2, 3, 4, 5], train_end=3),
        User(item=[6], train_end=0),
        User(item=[7, 2], train_end=1),
        User(item=[3, 3], train_end=2),
    ]
    dataset = write_dataset(tmp_path, users, num_trained=6, buckets=(2, 0, 2))
    user, item = dataset.training_events("item")
    assert user.tolist() == [0, 0, 0, 2, 3, 3]
    assert item.tolist() == [2, 3, 4, 7, 3, 3]


def test_a_planted_future_changes_no_training_event(tmp_path: Path) -> None:
    one = write_dataset(tmp_path / "a", [User(item=[2, 3, 4], train_end=2)], num_trained=3)
    other = write_dataset(tmp_path / "b", [User(item=[2, 3, 2], train_end=2)], num_trained=3)
    for a, b in zip(one.training_events("item"), other.training_events("item"), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("num_neighbours", [1, 3, 10])
def test_teacher_rows_are_the_graphs_neighbours_strongest_first_as_shares(
    toy: PreparedDataset, num_neighbours: int
) -> None:
    teacher = graph_teacher(toy, num_neighbours)
    user, item = toy.training_events("item")
    graph = cooccurrence(user, item, num_items=14, num_neighbours=num_neighbours).toarray()
    assert teacher.neighbours.shape == teacher.weights.shape == (14, num_neighbours)
    for row in range(14):
        expected = sorted(
            ((-weight, column) for column, weight in enumerate(graph[row]) if weight > 0)
        )
        count = len(expected)
        assert teacher.neighbours[row, :count].tolist() == [column for _, column in expected]
        assert (teacher.neighbours[row, count:] == 0).all()
        total = sum(-weight for weight, _ in expected)
        shares = torch.tensor([-weight / total for weight, _ in expected])
        torch.testing.assert_close(teacher.weights[row, :count], shares)
        assert (teacher.weights[row, count:] == 0).all()
    assert row > 0


def test_only_what_a_config_needs_is_built(toy: PreparedDataset) -> None:
    plain = build_objective(ObjectiveConfig(), toy)
    assert plain.sampler is None
    assert plain.teacher is None
    full = build_objective(ObjectiveConfig(prefix_loss="bce", teacher_weight=0.1), toy)
    assert full.teacher is not None
    assert full.sampler is not None
    uniform = full.sampler.log_q(torch.arange(2, 14))
    assert len(uniform.unique()) == 1
    config = ObjectiveConfig(step_losses=("sampled_softmax",), negatives="popularity")
    popular = build_objective(config, toy).sampler
    assert popular is not None
    assert len(popular.log_q(torch.arange(2, 14)).unique()) > 1
