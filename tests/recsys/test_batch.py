from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from tiny_world import random_context

from recsys.batch import CandidateSet, EvaluationBatch, Labels
from recsys.types import BOUNDARY


def test_real_tokens_and_events_are_told_apart() -> None:
    history = random_context((3, 1), ((1,), (1,)), num_items=9).history
    history = replace(history, behavior=torch.tensor([[3, BOUNDARY, 3], [3, BOUNDARY, 0]]))
    assert history.is_real.tolist() == [[True, True, True], [True, False, False]]
    assert history.is_event.tolist() == [[True, False, True], [True, False, False]]


def test_every_tensor_moves_with_the_batch_nested_ones_too() -> None:
    context = random_context((3, 1), ((1,), (1,)), num_items=9)
    candidates = CandidateSet(torch.zeros(2, 1, 1, 4).long())
    context = replace(
        context,
        requests=replace(context.requests, candidates=candidates),
        user={"age": torch.zeros(2)},
    )
    ids = torch.zeros(2).long()
    moved = EvaluationBatch(context, ids, ids[:, None], ids, ids).to("meta")
    requests = moved.context.requests
    assert moved.target.device.type == "meta"
    assert moved.context.history.item.device.type == "meta"
    assert requests.situation["hour"].device.type == "meta"
    assert moved.context.user["age"].device.type == "meta"
    assert requests.candidates.item.device.type == "meta"
    assert requests.candidates.position is None
    assert context.history.item.device.type == "cpu"


def test_targets_are_counted_without_padding() -> None:
    labels = Labels(torch.tensor([[0, 4, 0], [3, 0, 7]]), torch.zeros(2, 1, 1).long())
    assert labels.num_targets == 3


def test_a_batch_is_frozen_and_knows_its_rows() -> None:
    context = random_context((3, 1), ((1,), (1,)), num_items=9)
    assert context.num_rows == 2
    with pytest.raises(FrozenInstanceError):
        context.user = {}  # type: ignore[misc]
