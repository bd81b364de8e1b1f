"""The one visibility rule: which token may attend to which.

Every mask of the library follows from four attributes of a token:

- ``request``: ``SHARED`` for the prefix, else the number of the request the token belongs to;
- ``position``: of a prefix token its place in the history, of a tail token its request's cut;
- ``order``: of a tail token the place of its block, counting through both stages: 0 is the block
  of anchors and situation, then the retrieval steps 1 … K, then the candidates, then their steps;
- ``group``: of a candidate or a token that refines one, the number of its group; else ``SHARED``.

A prefix token sees the prefix up to its own position. A tail token sees the prefix before its cut,
and those tokens of its own request whose block is not later than its own and whose group is its own
or shared. Nothing in the prefix ever sees a tail.

The fast paths compute the same thing without a (prefix + tails)² matrix; tests compare them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SHARED = -1
"""Request of a prefix token, and group of a token that belongs to no candidate group."""


@dataclass(frozen=True, slots=True)
class TokenAttributes:
    """What visibility depends on, one entry a token, each (L,) int64."""

    request: Tensor
    position: Tensor
    order: Tensor
    group: Tensor


def may_attend(query: TokenAttributes, key: TokenAttributes) -> Tensor:
    """Apply the rule to every pair of tokens.

    Args:
        query: Attributes of the tokens that look, (L,) each.
        key: Attributes of the tokens looked at, (J,) each.

    Returns:
        (L, J) bool, True where the query may attend to the key.

    Example:
        >>> token = lambda *xs: TokenAttributes(*(torch.tensor([x]) for x in xs))
        >>> event, later = token(SHARED, 3, 0, SHARED), token(SHARED, 4, 0, SHARED)
        >>> tail = token(0, 4, 1, SHARED)  # a request that may see 4 events: positions 0 to 3
        >>> [bool(may_attend(*pair)) for pair in ((tail, event), (tail, later), (event, tail))]
        [True, False, False]
    """

    def pair(name: str) -> tuple[Tensor, Tensor]:
        return getattr(query, name)[:, None], getattr(key, name)[None, :]

    (query_request, key_request), (query_at, key_at) = pair("request"), pair("position")
    (query_order, key_order), (query_group, key_group) = pair("order"), pair("group")
    in_prefix = key_request == SHARED
    from_prefix = in_prefix & torch.where(
        query_request == SHARED, key_at <= query_at, key_at < query_at
    )
    own_group = (key_group == SHARED) | (key_group == query_group)
    own_tail = (query_request == key_request) & ~in_prefix & (key_order <= query_order) & own_group
    return from_prefix | own_tail


def prefix_visible(cut: Tensor, num_tokens: int) -> Tensor:
    """The prefix half of the rule for tail tokens.

    Args:
        cut: History tokens each request may see, (B, Q) int64.
        num_tokens: T, the padded length of the prefix.

    Returns:
        (B, Q, T) bool, True where the request may attend to the history token.
    """
    return torch.arange(num_tokens, device=cut.device) < cut[..., None]


def causal_visible(num_tokens: int, device: torch.device | None = None) -> Tensor:
    """The prefix against itself, (T, T) bool: True at or before the token's own position.

    Args:
        num_tokens: T.
        device: Where to put it.

    Returns:
        The lower triangle.
    """
    return torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device).tril()
