import pytest
import torch
from torch import Tensor

from recsys.training.candidates import CandidateConfig, draw_candidates

NUM_TRAINED, NUM_ITEMS = 20, 25


def draw(config: CandidateConfig | None = None, **changes: object) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    given: dict[str, object] = {
        "query": torch.randn(2, 3, 4),
        "vectors": torch.randn(NUM_ITEMS, 4),
        "task_item": torch.tensor([[[5, 5], [6, 9], [0, 0]], [[7, 0], [3, 3], [4, 8]]]),
        "num_trained": NUM_TRAINED,
        "coarse": torch.tensor([0, 0, *([2, 3] * 12)])[:NUM_ITEMS],
        "groups": 2,
        "group_size": 4,
    }
    candidates, level = draw_candidates(config or CandidateConfig(), **{**given, **changes})  # type: ignore[arg-type]
    return candidates.item, level


def test_every_target_is_among_its_candidates_with_its_strongest_task() -> None:
    item, level = draw()
    for b, q, wanted in (
        (0, 0, {5: 2}),
        (0, 1, {6: 1, 9: 2}),
        (1, 0, {7: 1}),
        (1, 2, {4: 1, 8: 2}),
    ):
        found = dict(
            zip(item[b, q].flatten().tolist(), level[b, q].flatten().tolist(), strict=True)
        )
        assert {i: s for i, s in found.items() if s} == wanted


def test_no_candidate_comes_twice_and_only_trained_items_come() -> None:
    item, _ = draw()
    for row in item.flatten(0, 1).flatten(1):
        real = row[row > 0]
        assert len(real.unique()) == len(real)
        assert not len(real) or (real.min() >= 2 and real.max() < 2 + NUM_TRAINED)


def test_a_request_without_a_target_has_no_candidates() -> None:
    item, level = draw()
    assert not item[0, 2].any()
    assert not level[0, 2].any()


def test_hard_negatives_are_the_retrievals_own_best() -> None:
    query, vectors = torch.randn(1, 1, 4), torch.randn(NUM_ITEMS, 4)
    config = CandidateConfig(hard_share=1.0, category_share=0.0, hard_top=5)
    target = torch.tensor([[[2]]])
    item, _ = draw(config, query=query, vectors=vectors, task_item=target, groups=1, group_size=6)
    best = (vectors[2 : 2 + NUM_TRAINED] @ query[0, 0]).topk(5).indices + 2
    assert set(item.flatten().tolist()) - {0, 2} == set(best.tolist()) - {2}


def test_alike_negatives_are_of_the_targets_category() -> None:
    config = CandidateConfig(hard_share=0.0, category_share=1.0)
    item, _ = draw(config)
    # Codes alternate, so the category of item 5 is the odd items.
    assert all(int(i) % 2 == 1 for i in item[0, 0].flatten() if i)


def test_the_same_random_state_draws_the_same() -> None:
    one, two = draw(), draw()
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_large_catalogue_is_sampled_for_hard_negatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.training.candidates.MOST_SEARCHED", 6)
    item, _ = draw(CandidateConfig(hard_share=1.0, category_share=0.0))
    assert (item > 0).any()


@pytest.mark.parametrize(("hard", "alike"), [(-0.1, 0.5), (0.7, 0.4)])
def test_shares_that_cannot_be_are_refused(hard: float, alike: float) -> None:
    with pytest.raises(ValueError, match="at most 1 together"):
        CandidateConfig(hard_share=hard, category_share=alike)
