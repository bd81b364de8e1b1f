import torch

from recsys.nn.mask import SHARED, TokenAttributes, causal_visible, may_attend, prefix_visible

# Two history events, then request 0 (cut 1) with a base block, a step, and two candidate groups,
# then request 1 (cut 2) with a base block.
TOKENS = TokenAttributes(
    request=torch.tensor([SHARED, SHARED, 0, 0, 0, 0, 0, 1]),
    position=torch.tensor([0, 1, 1, 1, 1, 1, 1, 2]),
    order=torch.tensor([0, 0, 0, 1, 2, 2, 3, 0]),
    group=torch.tensor([SHARED, SHARED, SHARED, SHARED, 0, 1, 0, SHARED]),
)


def test_the_rule_gives_the_matrix_worked_by_hand() -> None:
    expected = [
        # h0 h1 base step g0 g1 g0' other
        [1, 0, 0, 0, 0, 0, 0, 0],  # history, causal
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0, 0, 0],  # base block: the history before the cut, itself
        [1, 0, 1, 1, 0, 0, 0, 0],  # step 1: and the base block
        [1, 0, 1, 1, 1, 0, 0, 0],  # candidate of group 0: never group 1
        [1, 0, 1, 1, 0, 1, 0, 0],  # candidate of group 1: never group 0
        [1, 0, 1, 1, 1, 0, 1, 0],  # a later step of group 0
        [1, 1, 0, 0, 0, 0, 0, 1],  # another request: its own tail alone
    ]
    assert may_attend(TOKENS, TOKENS).int().tolist() == expected


def test_a_request_never_sees_the_event_at_its_cut_or_later() -> None:
    history = TokenAttributes(*(torch.full((5,), SHARED) for _ in range(4)))
    history = TokenAttributes(
        history.request, torch.arange(5), torch.zeros(5).long(), history.group
    )
    for cut in range(6):
        tail = TokenAttributes(*(torch.tensor([x]) for x in (0, cut, 3, SHARED)))
        seen = may_attend(tail, history)[0]
        assert seen.tolist() == [position < cut for position in range(5)]
        assert prefix_visible(torch.tensor([[cut]]), 5)[0, 0].tolist() == seen.tolist()


def test_the_causal_matrix_is_the_rule_among_history_tokens() -> None:
    n = 4
    shared = torch.full((n,), SHARED)
    history = TokenAttributes(shared, torch.arange(n), torch.zeros(n).long(), shared)
    assert torch.equal(causal_visible(n), may_attend(history, history))
