import math

import pytest
import torch

from recsys.nn.attention import Source, prefix_attention, tail_attention


def test_one_head_of_tail_attention_is_what_the_hand_works_out() -> None:
    # One query, width 1, so logits are q·k: 0 and log 2 in the prefix, log 3 in the own tail.
    log2, log3 = math.log(2), math.log(3)
    q = torch.tensor([1.0]).view(1, 1, 1, 1, 1)
    k = torch.tensor([0.0, log2, 99.0]).view(1, 1, 1, 3, 1)
    v = torch.tensor([6.0, 12.0, 1e6]).view(1, 1, 1, 3, 1)
    own_k, own_v = (
        torch.tensor([log3]).view(1, 1, 1, 1, 1),
        torch.tensor([30.0]).view(1, 1, 1, 1, 1),
    )
    visible = torch.tensor([[[True, True, False]]])
    out = tail_attention(q, [Source(k, v, visible), Source(own_k, own_v)])
    # weights 1 : 2 : 3 of 6
    assert out.item() == pytest.approx((6 + 2 * 12 + 3 * 30) / 6)


def test_the_bias_moves_weight_between_prefix_tokens_and_leaves_the_own_tail_its_logit() -> None:
    q, zero = torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 2, 1)
    v, own_v = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2, 1), torch.tensor([4.0]).view(1, 1, 1, 1, 1)
    bias = torch.tensor([math.log(3), 0.0]).view(1, 1, 1, 1, 2)
    out = tail_attention(q, [Source(zero, v, bias=bias), Source(q, own_v)])
    assert out.item() == pytest.approx((3 * 1 + 1 * 2 + 1 * 4) / 5)


def test_a_request_that_sees_no_prefix_reads_its_own_tail_alone() -> None:
    q = torch.randn(1, 1, 2, 1, 3)
    prefix = torch.randn(1, 1, 2, 4, 3)
    own = torch.randn(1, 1, 2, 1, 3)
    visible = torch.zeros(1, 1, 4, dtype=torch.bool)
    found = tail_attention(q, [Source(prefix, prefix, visible), Source(own, own)])
    torch.testing.assert_close(found, own)


def test_tails_that_share_keys_read_what_they_would_read_from_copies() -> None:
    q = torch.randn(2, 6, 2, 3, 4, dtype=torch.float64)
    keys = torch.randn(2, 3, 2, 5, 4, dtype=torch.float64)
    visible = torch.rand(2, 6, 5) < 0.7
    visible[..., 0] = True
    shared = tail_attention(q, [Source(keys, keys + 1, visible)])
    copies = keys.repeat_interleave(2, dim=1)
    own = tail_attention(q, [Source(copies, copies + 1, visible)])
    torch.testing.assert_close(shared, own, atol=1e-12, rtol=0)


@pytest.mark.parametrize("with_bias", [False, True])
def test_prefix_attention_is_softmax_over_the_past(with_bias: bool) -> None:
    q, k, v = torch.randn(3, 2, 2, 5, 4, dtype=torch.float64)
    bias = torch.randn(2, 2, 5, 5, dtype=torch.float64) if with_bias else None
    found = prefix_attention(q, k, v, bias)
    for at in range(5):
        logits = q[:, :, at : at + 1] @ k[:, :, : at + 1].transpose(-1, -2) / 2
        if bias is not None:
            logits = logits + bias[:, :, at : at + 1, : at + 1]
        expected = logits.softmax(-1) @ v[:, :, : at + 1]
        torch.testing.assert_close(found[:, :, at : at + 1], expected, atol=1e-12, rtol=0)
