"""Users and events of the synthetic world, generated a block of users at a time.

Everything that does not depend on an earlier item is drawn for a whole block at once; only
transitions and repeats are resolved click by click, all users together.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.data.synthetic_items import (
    ANSWER_DAYS,
    FOLLOW_UP_SHARES,
    NUM_ANSWERS,
    NUM_BINS,
    NUM_PHRASES,
    NUM_TIERS,
    NUM_TRENDING,
    TREND_DAYS,
    Items,
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

KINDS = ("taste", "transition", "trend", "repeat", "noise", "query", "funnel")
TASTE, TRANSITION, TREND, REPEAT, NOISE, QUERY, FUNNEL = range(7)
BEHAVIORS = ("click", "cart", "order", "favorite")
CLICK, CART, ORDER, FAVORITE = range(4)
DEVICES = ("mobile", "desktop", "tablet")
NUM_TASTES = 3
AGE_GROUPS = ("18-24", "25-39", "40-59", "60+")
REGIONS = ("north", "south", "east", "west")

DAY_S = 86_400
SESSION_CLICKS = 5
"""Mean clicks of a session."""
CONTINUES = 0.35
"""Probability that a session goes on with the topic of the session before."""
MOOD = 4.0
"""Factor of a taste in its moment: topic % 4 = 0 at weekends, 1 from 18:00, 2 before 11:00."""
STAYS = 0.8
"""Probability that a taste click is of the session's topic, not of another taste of the user."""
IN_BUDGET = 0.7
"""Probability that a taste click is in the user's price tier; else any tier."""
STAPLES = 12
"""A repeat returns to one of the user's first clicks, at most this many."""
CART_LOGIT = {"base": -3.2, "in_budget": 1.2, "taste": 0.8, "repeat": 1.5}
ORDER_LOGIT = {"base": -0.6, "in_budget": 0.8, "taste": 0.0, "repeat": 1.5}
FAVORITE_RATE = {"base": 0.02, "taste": 0.05}


@dataclass(frozen=True, slots=True)
class Users:
    """The truth about users. Arrays have a row a user, in the order of the users table."""

    tastes: Ints
    """(U, 3) topics, strongest first."""
    weights: Floats
    """(U, 3) shares, rows sum to 1."""
    tier: Ints
    """Price tier the user prefers."""
    age: Ints
    region: Ints
    domain: Ints
    """Service the user prefers."""
    device: Ints
    peak_hour: Ints
    start_day: Ints
    """First day on which the user may come."""
    num_events: Ints
    """Events of the user in the log."""


@dataclass(frozen=True, slots=True)
class Block:
    """Events of a block of users, in order of time; rows of users and items, not ids."""

    user: Ints
    item: Ints
    timestamp: Ints
    behavior: Ints
    device: Ints
    query: Ints
    """``topic · phrases + phrase``; -1 = the session did not start with a search."""
    session: Ints
    """Ordinal of the session inside the block."""
    kind: Ints
    cause: Ints
    """Row, inside the block, of the event that led to this one; -1 = none."""


def make_users(
    *,
    num_users: int,
    num_events: int,
    num_topics: int,
    num_domains: int,
    num_days: int,
    rng: np.random.Generator,
) -> Users:
    """Draw the users' truth; the numbers of events add up exactly.

    An age group likes a quarter of the topics more, and has its own budget.

    Args:
        num_users: U.
        num_events: Of all users together.
        num_topics: Topics there are.
        num_domains: Services there are.
        num_days: Length of the period.
        rng: Randomness.

    Returns:
        The users.
    """
    age = rng.integers(0, len(AGE_GROUPS), num_users)
    liking = rng.random((num_users, num_topics))
    liking *= rng.uniform(0.8, 1.0, num_topics)
    liking **= np.where(np.arange(num_topics) // 4 % len(AGE_GROUPS) == age[:, None], 0.5, 1.0)
    tastes = np.argsort(-liking, axis=1, kind="stable")[:, :NUM_TASTES]
    if tastes.shape[1] < NUM_TASTES:
        tastes = np.resize(tastes.T, (NUM_TASTES, num_users)).T
    weights = np.array([0.6, 0.3, 0.1]) * np.exp(rng.normal(0, 0.3, (num_users, NUM_TASTES)))
    least = min(5, num_events // num_users)
    size = np.minimum(np.exp(rng.normal(0, 0.8, num_users)), 12)
    edges = np.rint(np.cumsum(size) / size.sum() * (num_events - least * num_users))
    return Users(
        tastes=tastes,
        weights=weights / weights.sum(1, keepdims=True),
        tier=np.clip(age // 2 + rng.integers(0, 2, num_users), 0, NUM_TIERS - 1),
        age=age,
        region=rng.integers(0, len(REGIONS), num_users),
        domain=rng.integers(0, num_domains, num_users),
        device=rng.choice(len(DEVICES), num_users, p=(0.6, 0.3, 0.1)),
        peak_hour=rng.choice((8, 13, 20), num_users, p=(0.25, 0.25, 0.5)),
        start_day=np.where(
            rng.random(num_users) < 0.7, 0, (rng.random(num_users) * num_days * 0.9).astype(int)
        ),
        num_events=np.diff(edges, prepend=0).astype(np.int64) + least,
    )


def make_block(
    users: Users,
    items: Items,
    rows: range,
    *,
    shares: dict[str, float],
    search_share: float,
    start_time: int,
    num_days: int,
    rng: np.random.Generator,
) -> Block:
    """Generate all events of some users.

    Args:
        users: All users.
        items: All items.
        rows: The users to generate.
        shares: Probability of a click's kind: transition, trend, repeat, noise, query; the rest is
            taste.
        search_share: Probability that a session starts with a search.
        start_time: Seconds since 1970.
        num_days: Length of the period.
        rng: Randomness of this block alone.

    Returns:
        The events, exactly ``users.num_events`` for each.
    """
    who = np.arange(rows.start, rows.stop)
    # A click may bring further events, so this many clicks are always enough; the rest is cut.
    lengths = users.num_events[who]
    user = np.repeat(who, lengths)
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)
    step = np.arange(len(user)) - first
    opens = (step == 0) | (rng.random(len(user)) < 1 / SESSION_CLICKS)
    session = np.cumsum(opens) - 1
    session_user = user[opens]
    gap = np.rint(10 + rng.exponential(50, len(user))).astype(np.int64)
    start = _session_starts(
        users, session_user, np.bincount(session, gap).astype(np.int64), num_days, rng
    )
    elapsed = np.cumsum(gap) - gap
    time = start[session] + elapsed - elapsed[opens][session]

    topic, domain = _session_intent(users, items, session_user, start, rng)
    kind = _kinds(shares, step, opens, domain[session], rng)
    source = np.where(kind == TRANSITION, np.arange(len(user)) - 1, -1)
    staple = (np.minimum(step - 2, STAPLES) * rng.random(len(user)) ** 2).astype(np.int64)
    source = np.where(kind == REPEAT, first + staple, source)
    item = _independent_items(
        users, items, user, topic[session], domain[session], kind, time, num_days, rng
    )
    edges = np.cumsum(FOLLOW_UP_SHARES)[:-1]
    choice = (rng.random(len(item))[:, None] >= edges).sum(1)
    searched = rng.random(len(start)) < search_share
    phrase = rng.integers(0, NUM_PHRASES, len(start))
    query = np.where(searched, topic * NUM_PHRASES + phrase, -1)
    other = rng.choice(len(DEVICES), len(start), p=(0.6, 0.3, 0.1))
    device = np.where(rng.random(len(start)) < 0.8, users.device[session_user], other)
    kind[(kind == QUERY) & (query[session] < 0)] = TASTE
    asked = np.flatnonzero(kind == QUERY)
    period = np.minimum(time[asked] // DAY_S, num_days - 1) // ANSWER_DAYS
    wanted = rng.integers(0, NUM_ANSWERS, len(asked))
    item[asked] = items.answers[period, domain[session[asked]], query[session[asked]], wanted]
    _follow(items, item, kind, source, step, choice)
    clicks = Block(
        user=user,
        item=item,
        timestamp=time,
        behavior=np.zeros(len(user), np.int64),
        device=device[session],
        query=query[session],
        session=session,
        kind=kind,
        cause=source,
    )
    return _in_time(_with_funnel(clicks, users, items, gap, rng), users, start_time)


def _session_starts(
    users: Users, user: Ints, duration: Ints, num_days: int, rng: np.random.Generator
) -> Ints:
    """Seconds after the period's start at which each session begins; sessions never overlap."""
    day_weight = np.where(_weekday(np.arange(num_days)) >= 5, 1.4, 1.0)
    edges = np.concatenate(([0.0], np.cumsum(day_weight)))
    low = edges[users.start_day[user]]
    day = np.searchsorted(edges, low + rng.random(len(user)) * (edges[-1] - low), side="right") - 1
    hour = (users.peak_hour[user] + rng.normal(0, 2.5, len(user))) % 24
    wish = (np.minimum(day, num_days - 1) * DAY_S + hour * 3600).astype(np.int64)
    wish = wish[np.lexsort((wish, user))]
    # s_i = max(wish_i, s_{i-1} + duration_{i-1} + pause) is a running maximum of wish minus the
    # time taken so far; the offset keeps one user's maximum out of the next user's.
    taken = np.cumsum(duration + 1800)
    taken = np.concatenate(([0], taken[:-1]))
    offset = (user - (user[0] if len(user) else 0)) * (4 * num_days * DAY_S + taken[-1:].sum())
    starts: Ints = np.maximum.accumulate(wish - taken + offset) - offset + taken
    return starts


def _weekday(day: Ints) -> Ints:
    return day % 7  # the period starts on a Monday


def _session_intent(
    users: Users, items: Items, user: Ints, start: Ints, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Topic and domain of each session: tastes, moved by weekday and hour, often kept."""
    tastes = users.tastes[user]
    weekend = _weekday(start // DAY_S) >= 5
    hour = start % DAY_S // 3600
    moments = np.stack([weekend, hour >= 18, hour < 11, np.zeros(len(user), bool)])
    weight = users.weights[user] * np.where(
        moments[tastes % 4, np.arange(len(user))[:, None]], MOOD, 1
    )
    topic = tastes[np.arange(len(user)), _pick(weight, rng)]
    domain = np.where(
        rng.random(len(user)) < 0.65,
        users.domain[user],
        rng.integers(0, items.num_domains, len(user)),
    )
    goes_on = rng.random(len(user)) < CONTINUES
    goes_on &= np.diff(user, prepend=-1) == 0
    kept = np.maximum.accumulate(np.where(goes_on, 0, np.arange(len(user))))
    return topic[kept], domain


def _pick(weight: Floats, rng: np.random.Generator) -> Ints:
    """(n, options) weights → (n,) option."""
    edges = np.cumsum(weight, axis=1)
    chosen: Ints = ((rng.random(len(weight)) * edges[:, -1])[:, None] >= edges[:, :-1]).sum(1)
    return chosen


def _kinds(
    shares: dict[str, float],
    step: Ints,
    opens: NDArray[np.bool_],
    domain: Ints,
    rng: np.random.Generator,
) -> Ints:
    """Why each click happens; a session's first click is half as likely to be a transition."""
    draw = rng.random(len(step))
    kind = np.full(len(step), TASTE)
    edge = 0.0
    for code in (TREND, NOISE, REPEAT, QUERY):
        share = shares[KINDS[code]]
        kind[(draw >= edge) & (draw < edge + share)] = code
        edge += share
    moves = np.where(opens, 0.5, 1.0) * shares["transition"]
    kind[(draw >= edge) & (draw < edge + moves)] = TRANSITION
    same_domain = np.diff(domain, prepend=-1) == 0
    kind[(kind == TRANSITION) & ((step == 0) | ~same_domain)] = TASTE
    kind[(kind == REPEAT) & (step < 3)] = TASTE
    return kind


def _independent_items(
    users: Users,
    items: Items,
    user: Ints,
    topic: Ints,
    domain: Ints,
    kind: Ints,
    time: Ints,
    num_days: int,
    rng: np.random.Generator,
) -> Ints:
    """Items of the clicks that no earlier event caused; the others get a place holder."""
    count = len(user)
    own = users.tastes[user, _pick(users.weights[user], rng)]
    topic = np.where(rng.random(count) < STAYS, topic, own)
    tier = np.where(
        rng.random(count) < IN_BUDGET, users.tier[user], rng.integers(0, NUM_TIERS, count)
    )
    topic = np.where(kind == NOISE, rng.integers(0, len(items.topics), count), topic)
    tier = np.where(kind == NOISE, rng.integers(0, NUM_TIERS, count), tier)
    day = np.minimum(time // DAY_S, num_days - 1)
    cell = (domain * len(items.topics) + topic) * NUM_TIERS + tier
    item = items.draw(cell, day * NUM_BINS // num_days, rng.random(count))
    hot = items.trending[day // TREND_DAYS, domain, rng.integers(0, NUM_TRENDING, count)]
    return np.where(kind == TREND, hot, item)


def _follow(items: Items, item: Ints, kind: Ints, source: Ints, step: Ints, choice: Ints) -> None:
    """Fill in transitions and repeats, all users' first clicks first, then their second."""
    waits = np.flatnonzero(source >= 0)
    waits = waits[np.argsort(step[waits], kind="stable")]
    for now in np.split(waits, np.flatnonzero(np.diff(step[waits])) + 1):
        before = item[source[now]]
        after = items.follow_ups[before, choice[now]]
        item[now] = np.where(kind[now] == TRANSITION, after, before)


def _with_funnel(
    clicks: Block, users: Users, items: Items, gap: Ints, rng: np.random.Generator
) -> Block:
    """Add favourites, carts and orders between a click and the next one."""
    user, item = clicks.user, clicks.item
    in_budget = items.tier[item] == users.tier[user]
    taste = (users.tastes[user] == items.topic[item][:, None]).any(1)
    repeat = clicks.kind == REPEAT

    def happens(logit: dict[str, float]) -> NDArray[np.bool_]:
        score = logit["base"] + logit["in_budget"] * in_budget
        score = score + logit["taste"] * taste + logit["repeat"] * repeat
        found: NDArray[np.bool_] = rng.random(len(user)) < 1 / (1 + np.exp(-score))
        return found

    cart = happens(CART_LOGIT)
    order = happens(ORDER_LOGIT) & cart
    favorite = rng.random(len(user)) < FAVORITE_RATE["base"] + FAVORITE_RATE["taste"] * taste
    number = np.arange(len(user))
    source = np.concatenate([number, number[favorite], number[cart], number[order]])
    sizes = (len(user), int(favorite.sum()), int(cart.sum()), int(order.sum()))
    behavior = np.repeat((CLICK, FAVORITE, CART, ORDER), sizes)
    delay = np.repeat((0.0, 0.25, 0.5, 0.75), sizes)
    time = clicks.timestamp[source] + (delay * gap[source]).astype(np.int64)
    cart_row = np.cumsum(cart) - 1 + sizes[0] + sizes[1]
    cause = np.concatenate([clicks.cause, number[favorite], number[cart], cart_row[order]])
    return Block(
        user=user[source],
        item=item[source],
        timestamp=time,
        behavior=behavior,
        device=clicks.device[source],
        query=clicks.query[source],
        session=clicks.session[source],
        kind=np.where(behavior == CLICK, clicks.kind[source], FUNNEL),
        cause=cause,
    )


def _in_time(block: Block, users: Users, start_time: int) -> Block:
    """Cut each user to the promised number of events and order the block by time."""
    # One key of four sorted runs: a stable sort merges them, far faster than two keys would sort.
    order = np.argsort(block.user * 2**36 + block.timestamp, kind="stable")
    user = block.user[order]
    edge = np.searchsorted(user, user)  # where the user's events begin
    order = order[np.arange(len(user)) - edge < users.num_events[user]]
    order = order[np.argsort(block.timestamp[order], kind="stable")]
    place = np.full(len(block.user) + 1, -1)
    place[order] = np.arange(len(order))
    return Block(
        user=block.user[order],
        item=block.item[order],
        timestamp=block.timestamp[order] + start_time,
        behavior=block.behavior[order],
        device=block.device[order],
        query=block.query[order],
        session=block.session[order],
        kind=block.kind[order],
        cause=place[block.cause[order]],  # -1 stays -1
    )
