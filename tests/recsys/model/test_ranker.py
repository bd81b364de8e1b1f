"""The ranking stage on what the retrieval read: the claims of its module's head."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_world import in_float64, only_request, random_context, tiny_model
from torch import Tensor

from recsys.batch import CandidateSet, ContextBatch
from recsys.data.dataset import PreparedDataset
from recsys.model.onepiece import ItemVectors, ModelOutput, OnePiece
from recsys.model.ranker import task_steps

LENGTHS, CUTS = (6, 3), ((6, 0, 2), (1, 3, 0))
B, Q, G, C = 2, 3, 2, 4
VARIANTS: dict[str, dict[str, Any]] = {
    "own over own": {"reasoner": {"decoder": "own"}, "ranker": {"decoder": "own"}},
    "shared over shared": {"reasoner": {"decoder": "shared"}, "ranker": {"decoder": "shared"}},
    "own over shared, two layers": {
        "reasoner": {"decoder": "shared"},
        "ranker": {"decoder": "own", "num_layers": 2, "num_steps": 2},
    },
    "shared over own": {
        "reasoner": {"decoder": "own"},
        "ranker": {"decoder": "shared", "read_steps": False},
    },
    "without a reasoner": {
        "reasoner": {"decoder": "none", "num_steps": 0},
        "ranker": {"decoder": "own"},
    },
    "alone": {
        "reasoner": {"decoder": "own"},
        "ranker": {"decoder": "own", "candidates_visible": False, "progressive": False},
    },
    "shared over shared, apart": {
        "reasoner": {"decoder": "shared"},
        "ranker": {"decoder": "shared", "isolated": True},
    },
    "with anchors": {
        "reasoner": {"decoder": "own"},
        "ranker": {"decoder": "own", "use_position": True},
        "anchor_lengths": (3, 2),
    },
}
variants = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def build(toy: PreparedDataset, variant: str, **ranker: Any) -> tuple[OnePiece, ContextBatch]:
    parts = {**VARIANTS[variant]}
    parts["ranker"] = {"isolated": False, **parts["ranker"], **ranker}
    model = in_float64(tiny_model(toy, **parts))
    context = random_context(LENGTHS, CUTS, num_items=14)
    if lengths := model.config.data.anchor_lengths:
        anchors = torch.randint(2, 14, (B, Q, sum(lengths)), generator=torch.Generator())
        anchors[0, 1, 2] = anchors[1, 0, 3:] = 0
        context = replace(context, requests=replace(context.requests, anchor_item=anchors))
    return model, context


def candidates(seed: int = 0) -> CandidateSet:
    g = torch.Generator().manual_seed(seed)
    item = torch.stack([torch.randperm(12, generator=g)[: G * C] + 2 for _ in range(B * Q)])
    item = item.view(B, Q, G, C)
    item[0, 1, 1, 2:] = 0
    return CandidateSet(item, torch.randint(1, 9, (B, Q, G, C), generator=g))


def close(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, atol=1e-12, rtol=1e-12)


def read(model: OnePiece, context: ContextBatch) -> ModelOutput:
    """Item vectors come from float32 tables; everything behind them is float64."""
    return model(context, ItemVectors(model.embed_items().vectors.double()))


def logits(model: OnePiece, context: ContextBatch, shown: CandidateSet) -> Tensor:
    return model.rank(read(model, context), shown).logits


@variants
def test_packed_requests_are_ranked_as_one_by_one(toy: PreparedDataset, variant: str) -> None:
    model, context = build(toy, variant)
    shown = candidates()
    packed = logits(model, context, shown)
    for q in range(Q):
        alone = only_request(context, q)
        if context.requests.anchor_item is not None:
            anchors = context.requests.anchor_item[:, q : q + 1]
            alone = replace(alone, requests=replace(alone.requests, anchor_item=anchors))
        part = CandidateSet(shown.item[:, q : q + 1], shown.position[:, q : q + 1])
        close(logits(model, alone, part), packed[:, q : q + 1])


@variants
def test_groups_together_are_ranked_as_one_by_one(toy: PreparedDataset, variant: str) -> None:
    model, context = build(toy, variant)
    shown = candidates()
    packed = logits(model, context, shown)
    for g in range(G):
        part = CandidateSet(shown.item[:, :, g : g + 1], shown.position[:, :, g : g + 1])
        close(logits(model, context, part), packed[:, :, g : g + 1])


@variants
def test_permuting_candidates_permutes_their_logits(toy: PreparedDataset, variant: str) -> None:
    model, context = build(toy, variant)
    shown = candidates()
    order = torch.tensor([2, 0, 3, 1])
    moved = CandidateSet(shown.item[..., order], shown.position[..., order])
    found = logits(model, context, shown)[..., order, :]
    close(logits(model, context, moved), found)


@variants
def test_padding_among_candidates_and_behind_histories_is_neutral(
    toy: PreparedDataset, variant: str
) -> None:
    model, context = build(toy, variant)
    shown = candidates()
    real = shown.item != 0
    before = logits(model, context, shown)
    more = CandidateSet(
        torch.nn.functional.pad(shown.item, (0, 3)), torch.nn.functional.pad(shown.position, (0, 3))
    )
    close(logits(model, context, more)[..., :C, :][real], before[real])
    history = context.history
    wider = {
        name: torch.nn.functional.pad(getattr(history, name), (0, 2))
        for name in ("item", "behavior", "timestamp", "gap", "block")
    }
    longer = replace(context, history=replace(history, **wider))
    close(logits(model, longer, shown)[real], before[real])


@variants
def test_events_after_the_cut_change_no_logit(toy: PreparedDataset, variant: str) -> None:
    model, context = build(toy, variant)
    shown = candidates()
    before = logits(model, context, shown)
    item = context.history.item.clone()
    item[:, 3:] = torch.where(item[:, 3:] > 0, 15 - item[:, 3:], 0)
    later = replace(context, history=replace(context.history, item=item))
    after = logits(model, later, shown)
    early = context.requests.cut <= 3
    assert torch.equal(after[early], before[early])
    assert not torch.allclose(after[~early], before[~early])


def test_candidates_see_each_other_unless_told_not_to(toy: PreparedDataset) -> None:
    shown = candidates()
    other = CandidateSet(shown.item.clone(), shown.position)
    other.item[..., 0] = 15 - other.item[..., 0]
    for visible in (True, False):
        model, context = build(toy, "own over own", candidates_visible=visible)
        one, two = logits(model, context, shown), logits(model, context, other)
        assert torch.equal(one[..., 1:, :], two[..., 1:, :]) is not visible


def test_an_untrained_ranking_is_the_retrievals_own_order(toy: PreparedDataset) -> None:
    torch.manual_seed(0)
    config = tiny_model(toy, ranker={"decoder": "own"}).config
    model = OnePiece(config, toy.catalogue).eval()
    context, shown = random_context(LENGTHS, CUTS, num_items=14), candidates()
    state = model.read(context)
    score = (state.items.take(shown.item) * model.query_of(state)[:, :, None, None]).sum(-1)
    found = model.rank_of(state, shown)
    real = shown.item != 0
    assert torch.allclose(found[..., 0][real], score[real], atol=1e-5)


def test_isolated_ranking_sends_no_gradient_to_the_retrieval(toy: PreparedDataset) -> None:
    for isolated in (False, True):
        model, context = build(toy, "own over own", isolated=isolated)
        model.train()
        model.rank(read(model, context), candidates()).logits.square().sum().backward()
        touched = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert any(name.startswith("ranker.") for name in touched)
        assert all(name.startswith("ranker.") for name in touched) is isolated


def test_without_a_reasoner_the_ranking_trains_what_a_request_brings(toy: PreparedDataset) -> None:
    model, context = build(toy, "without a reasoner", isolated=True)
    model.train()
    model.rank(read(model, context), candidates()).logits.square().sum().backward()
    touched = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert "request_tokens.token" in touched
    assert all(name.startswith(("ranker.", "request_tokens.")) for name in touched)
    parts = [{id(p) for p in part} for part in model.independent_parts()]
    assert id(model.request_tokens.token) in parts[1]


def test_a_later_ranking_step_changes_no_earlier_one(toy: PreparedDataset) -> None:
    three, context = build(toy, "own over own", num_steps=3)
    two, _ = build(toy, "own over own", num_steps=2)
    state = {n: v[:2] if n == "ranker.step" else v for n, v in three.state_dict().items()}
    two.load_state_dict(state)
    early = three.rank(read(three, context), candidates()).early
    assert len(early) == 2
    assert torch.equal(two.rank(read(two, context), candidates()).early[0], early[0])
    assert torch.equal(two.rank(read(two, context), candidates()).logits[..., 0], early[1])


def test_positions_are_read_where_asked_for_and_neutral_where_unknown(toy: PreparedDataset) -> None:
    model, context = build(toy, "own over own", use_position=True)
    shown = candidates()
    one = logits(model, context, shown)
    assert not torch.allclose(one, logits(model, context, CandidateSet(shown.item)))
    with torch.no_grad():
        model.ranker.tokens.position.weight[0] = 0
    nothing = CandidateSet(shown.item, torch.zeros_like(shown.item))
    close(logits(model, context, nothing), logits(model, context, CandidateSet(shown.item)))


def test_tasks_are_answered_in_the_funnels_order() -> None:
    assert task_steps(3, 3, progressive=True) == (1, 2, 3)
    assert task_steps(5, 3, progressive=True) == (3, 4, 5)
    assert task_steps(2, 3, progressive=True) == (0, 1, 2)
    assert task_steps(2, 3, progressive=False) == (2, 2, 2)


def test_scores_are_normalised_by_running_statistics_in_scoring(toy: PreparedDataset) -> None:
    model, context = build(toy, "own over own")
    shown = candidates()
    model.train()
    for _ in range(3):
        model.rank(read(model, context), shown)
    model.eval()
    whole = logits(model, context, shown)
    part = CandidateSet(shown.item[:1], shown.position[:1])
    requests = {n: getattr(context.requests, n)[:1] for n in ("cut", "is_real", "timestamp", "gap")}
    situation = {n: v[:1] for n, v in context.requests.situation.items()}
    names = ("item", "behavior", "timestamp", "gap", "block", "lengths")
    first = ContextBatch(
        replace(context.history, **{n: getattr(context.history, n)[:1] for n in names}),
        replace(context.requests, **requests, situation=situation),
    )
    close(logits(model, first, part), whole[:1])
