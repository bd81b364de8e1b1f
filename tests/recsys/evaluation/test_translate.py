"""Yesterday's model on today's data: the same logs under other codes, and some more of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import START, User, tiny_model, write_dataset
from torch import Tensor
from two_days import NEW, OLD, write_day

from recsys.batch import ContextBatch, EvaluationBatch
from recsys.context.config import ContextConfig
from recsys.context.loader import history_batches
from recsys.data.dataset import PreparedDataset
from recsys.evaluation.scorers import ModelScorer
from recsys.evaluation.translate import Translation, same_codes
from recsys.schema import Feature
from recsys.types import UNKNOWN


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedDataset, PreparedDataset]:
    folder = tmp_path_factory.mktemp("days")
    return write_day(folder / "old", OLD), write_day(folder / "new", NEW)


def translation(old: PreparedDataset, new: PreparedDataset) -> Translation:
    return Translation.between(new, old.catalogue, old.manifest, old.vocabularies)


def asked(dataset: PreparedDataset) -> EvaluationBatch:
    """The moment after each user's last event."""
    stream = history_batches(dataset.buckets[0], dataset.manifest, ContextConfig(max_history=10))
    rows, context, seen = next(stream)
    return EvaluationBatch(context, torch.full_like(rows, 2), seen, rows, context.history.lengths)


def tensors(context: ContextBatch) -> list[Tensor]:
    history, requests = context.history, context.requests
    parts = (history.features, requests.situation, context.user)
    values = [value for part in parts for value in part.values()]
    return [history.item, history.behavior, history.gap, requests.cut, *values]


def test_a_translated_batch_is_the_batch_of_the_older_data(days: Any) -> None:
    old, new = days
    translated = translation(old, new)(asked(new).context)
    for mine, other in zip(tensors(translated), tensors(asked(old).context), strict=True):
        assert torch.equal(mine, other)


def test_known_items_score_as_on_the_models_own_data_and_new_ones_never_win(days: Any) -> None:
    old, new = days
    model = tiny_model(old, seed=1)
    own = ModelScorer(model).score(asked(old), 0, old.catalogue.num_items)
    scorer = ModelScorer(model, translation=translation(old, new))
    found = scorer.score(asked(new), 0, new.catalogue.num_items)
    assert list(found) == list(own)
    index = new.catalogue.index
    for head, scores in found.items():
        for item in ("a", "b", "c", "e"):
            torch.testing.assert_close(
                scores[:, index[item]], own[head][:, old.catalogue.index[item]]
            )
        assert (scores[:, index["d"]] == -torch.inf).all()
        single = scorer.score_items(asked(new), torch.tensor([index["d"], index["a"]]))[head]
        assert single[0] == -torch.inf
        torch.testing.assert_close(single[1], scores[1, index["a"]])
    assert scorer.is_unknown is not None
    assert scorer.is_unknown.nonzero()[0].tolist() == [UNKNOWN, index["d"]]


def test_words_the_model_never_heard_are_unknown_to_it(days: Any) -> None:
    found = translation(*days)
    assert found.codes["event.device"].tolist() == [0, 1, 3, 1, 2]  # pc, phone, tv
    assert found.codes["user.country"].tolist() == [0, 1, 1, 3, 2]  # us, fr, de
    assert found.behaviors.tolist() == [0, 1, 2, 1, 4, 3]  # save, cart, click


def test_numbers_are_scaled_as_the_model_learnt_them(tmp_path: Path) -> None:
    """A price of 70 is 2 spreads above yesterday's mean and 1 below today's."""
    days = [
        write_dataset(
            tmp_path / str(mean),
            [User(item=[2, 3], train_end=2, event={"price": [(70 - mean) / scale] * 2})],
            num_trained=2,
            event_features=(Feature(name="price", kind="numeric", mean=mean, scale=scale),),
        )
        for mean, scale in ((50.0, 10.0), (100.0, 30.0))
    ]
    price = translation(*days)(asked(days[1]).context).history.features["price"]
    torch.testing.assert_close(price, torch.full((1, 2), 2.0))


def test_only_what_differs_is_translated(days: Any) -> None:
    old, new = days
    assert same_codes(old, old.catalogue, old.manifest, old.vocabularies)
    assert not same_codes(new, old.catalogue, old.manifest, old.vocabularies)
    scaled = replace(old.manifest, event_features=new.manifest.event_features[:0])
    assert not same_codes(old, old.catalogue, scaled, old.vocabularies)


def test_other_logs_are_refused(days: Any, tmp_path: Path) -> None:
    other = write_dataset(
        tmp_path, [User(item=[2], train_end=1, timestamp=[START])], num_trained=1, item_ids=["z"]
    )
    with pytest.raises(ValueError, match=rf"knows no item of {tmp_path}"):
        translation(days[0], other)


def test_data_that_lack_what_the_model_reads_are_refused(days: Any, tmp_path: Path) -> None:
    bare = write_dataset(tmp_path, [User(item=[2], train_end=1)], num_trained=1, item_ids=["a"])
    with pytest.raises(ValueError, match=r"event features \['device'\], which .* lacks"):
        translation(days[0], bare)
