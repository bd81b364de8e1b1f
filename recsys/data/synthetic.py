"""A world with known causes: tastes, transitions, trends, repeats, a funnel, position bias.

The library's embedded data set: of any size, the same for a seed, and honest about why each event
happened, so that recommenders *and* explanations can be tested against the truth.

A click is, by chance, a **taste** (a topic of the user, in the session's mood and price tier), a
**transition** (a likely follow-up of the click before), a **trend** (one of a few items that are
hot for three days), a **repeat** (back to one of the user's first clicks), **noise** or, where the
log is made search-like, a **query** (one of a few items that everyone who searches this phrase
wants for six days: other searchers' clicks tell it, the user's own past does not). Favourites,
carts and orders follow from clicks (kind ``funnel``): more often in the user's topics and price
tier, see ``CART_LOGIT`` and ``ORDER_LOGIT``. Weekday and hour move tastes; popularity drifts; a
tenth of the items is released late.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.data.synthetic_events import (
    AGE_GROUPS,
    BEHAVIORS,
    CART,
    CLICK,
    DEVICES,
    KINDS,
    ORDER,
    REGIONS,
    Block,
    Users,
    make_block,
    make_users,
)
from recsys.data.synthetic_items import (
    NUM_TIERS,
    Items,
    domain_names,
    external_ids,
    items_table,
    make_items,
    topic_queries,
)

Ints = NDArray[np.int64]

START_TIME = 1_704_067_200
"""Monday, 1 January 2024, 00:00 UTC, in seconds since 1970."""
BLOCK_EVENTS = 500_000
"""Events generated at once, about: it fixes the blocks of users, hence the world, not its speed."""
FUTURE_TIME = 4_102_444_800
USER_ID_START = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticConfig:
    """What the world is made of."""

    num_users: int = 3_000
    num_items: int = 1_000
    num_events: int = 120_000
    """Rows of the events table, funnel events included; exact."""
    num_days: int = 60
    num_topics: int = 24
    """At most; a topic has at least six items in each domain."""
    num_domains: int = 1
    """Services. With more than one, tables get a ``domain`` column and item ids repeat across
    domains; tastes are the user's own everywhere."""
    transition_share: float = 0.35
    """Probability that a click follows from the click before; half of it where a session starts."""
    repeat_share: float = 0.08
    trend_share: float = 0.08
    noise_share: float = 0.05
    query_share: float = 0.0
    """Probability that a click of a session that starts with a search answers the query."""
    search_share: float = 0.3
    """Sessions that start with a search."""
    impression_share: float = 0.2
    """Clicks whose result list is logged in the impressions table."""
    list_length: int = 10
    """Items shown in a list."""
    position_decay: float = 0.7
    """A user looks at position p (from 0) with probability (1 + p) ** -position_decay."""
    dirty: bool = False
    """Append bad rows (0.5 %): null ids and times, the far future, negative times, duplicates."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check sizes and shares."""
        for name in ("num_users", "num_days", "num_topics", "num_domains", "list_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be above 0.")
        if self.num_events < self.num_users:
            raise ValueError(
                f"num_events ({self.num_events}) must be at least num_users ({self.num_users})."
            )
        if self.num_items < 6 * self.num_domains:
            raise ValueError(
                f"num_items ({self.num_items}) must be at least 6 a domain "
                f"({6 * self.num_domains})."
            )
        shares = self.shares
        if min(shares.values()) < 0 or sum(shares.values()) > 1:
            raise ValueError(f"shares {shares} must not be below 0 or above 1 together.")
        for name in ("impression_share", "search_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must lie in 0 … 1.")

    @property
    def shares(self) -> dict[str, float]:
        """Probability of each kind of click; what is left is taste."""
        return {name: getattr(self, f"{name}_share") for name in KINDS[1:-1]}


@dataclass(frozen=True, slots=True)
class World:
    """The logs and the truth behind them."""

    config: SyntheticConfig
    events: pa.Table
    """``user_id item_id timestamp behavior device query`` (and ``domain``), in order of time."""
    items: pa.Table
    """``item_id title text categories brand price`` (and ``domain``)."""
    users: pa.Table
    """``user_id age_group region device price_level``."""
    impressions: pa.Table
    """A row a shown item: ``request_id user_id item_id timestamp position click cart order`` and
    ``price`` (and ``domain``; and ``query`` in a search-like log). One list in five has no
    click."""
    causes: pa.Table
    """A row an event, same order: ``event kind cause_event topic session``. ``event`` and
    ``cause_event`` are row numbers of ``events``; ``topic`` is the item's category (the second of
    its ``categories``); for a repeat, ``cause_event`` is the first of the clicks it returns to."""
    item_truth: Items
    """Tastes' other side: topics, tiers, releases, follow-ups and trends, a row an item."""
    user_truth: Users
    """Tastes and habits, a row a user."""


def synthetic_world(config: SyntheticConfig | None = None) -> World:
    """Generate a world in memory.

    Args:
        config: Sizes, shares, seed; None for the default world (3,000 users, 1,000 items).

    Returns:
        All tables and the truth.

    Example:
        >>> world = synthetic_world(SyntheticConfig(num_users=20, num_items=40, num_events=300))
        >>> world.events.num_rows, world.causes.num_rows
        (300, 300)
    """
    config = config or SyntheticConfig()
    items, users = _truth(config)
    blocks = list(_blocks(config, items, users))
    block = _merge(blocks)
    item_table = items_table(items, seed=config.seed)
    events = pa.Table.from_batches([_event_batch(config, items, block)])
    return World(
        config=config,
        events=_with_dirt(events, config) if config.dirty else events,
        items=item_table,
        users=users_table(users, seed=config.seed),
        impressions=_impressions(config, items, block, item_table["price"].to_numpy()),
        causes=_causes(items, block),
        item_truth=items,
        user_truth=users,
    )


def synthetic_events(
    config: SyntheticConfig, *, batch_rows: int = 250_000
) -> Iterator[pa.RecordBatch]:
    """Generate events of any number at bounded memory, a block of users at a time.

    Inside a block rows are in order of time. All blocks together hold the same rows as the world's
    events table, dirt left out. Memory is linear in users and items, and flat in events.

    Args:
        config: Sizes, shares, seed.
        batch_rows: Most rows of a batch.

    Yields:
        Batches with the columns of the world's events table.
    """
    items, users = _truth(config)
    for block in _blocks(config, items, users):
        batch = _event_batch(config, items, block)
        for start in range(0, batch.num_rows, batch_rows):
            yield batch.slice(start, batch_rows)


def write(world: World, folder: Path | str) -> None:
    """Write ``events items users impressions causes`` as parquet files, each one atomically.

    Args:
        world: The world.
        folder: Made where it is missing.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for name in ("events", "items", "users", "impressions", "causes"):
        _write(getattr(world, name), target / f"{name}.parquet")


def write_streamed(
    config: SyntheticConfig, folder: Path | str, *, rows_per_file: int = 5_000_000
) -> None:
    """Write ``events/part-00000.parquet`` …, ``items.parquet`` and ``users.parquet``.

    For logs that do not fit in memory; the rows are those of the in-memory world.

    Args:
        config: Sizes, shares, seed.
        folder: Made where it is missing.
        rows_per_file: A file is closed at the first batch end past this many rows.

    Raises:
        ValueError: If ``rows_per_file`` is not above 0.
    """
    if rows_per_file < 1:
        raise ValueError(f"rows_per_file ({rows_per_file}) must be above 0.")
    target = Path(folder)
    (target / "events").mkdir(parents=True, exist_ok=True)
    items, users = _truth(config)
    _write(items_table(items, seed=config.seed), target / "items.parquet")
    _write(users_table(users, seed=config.seed), target / "users.parquet")
    batches = synthetic_events(config)
    batch, number = next(batches, None), 0
    while batch is not None:
        final = target / "events" / f"part-{number:05d}.parquet"
        temporary, rows = final.with_name(f".{final.name}.tmp"), 0
        with pq.ParquetWriter(temporary, batch.schema, compression="zstd") as writer:
            while batch is not None and rows < rows_per_file:
                writer.write_batch(batch)
                rows += batch.num_rows
                batch = next(batches, None)
        os.replace(temporary, final)
        number += 1


def users_table(users: Users, *, seed: int) -> pa.Table:
    """Describe the users as a service would know them.

    Args:
        users: The truth.
        seed: Of the noise in ``price_level``, which is right for about four users in five.

    Returns:
        ``user_id age_group region device price_level``.
    """
    rng = np.random.default_rng([seed, 4])
    count = len(users.tier)
    told = np.where(rng.random(count) < 0.7, users.tier, rng.integers(0, NUM_TIERS, count))
    return pa.table(
        {
            "user_id": np.arange(count) + USER_ID_START,
            "age_group": _name(AGE_GROUPS, users.age),
            "region": _name(REGIONS, users.region),
            "device": _name(DEVICES, users.device),
            "price_level": _name(("low", "middle", "high"), told),
        }
    )


def _truth(config: SyntheticConfig) -> tuple[Items, Users]:
    items = make_items(
        num_items=config.num_items,
        num_domains=config.num_domains,
        num_topics=config.num_topics,
        num_days=config.num_days,
        rng=np.random.default_rng([config.seed, 0]),
    )
    users = make_users(
        num_users=config.num_users,
        num_events=config.num_events,
        num_topics=len(items.topics),
        num_domains=config.num_domains,
        num_days=config.num_days,
        rng=np.random.default_rng([config.seed, 1]),
    )
    return items, users


def _blocks(config: SyntheticConfig, items: Items, users: Users) -> Iterator[Block]:
    size = max(1, BLOCK_EVENTS * config.num_users // config.num_events)
    for number, start in enumerate(range(0, config.num_users, size)):
        yield make_block(
            users,
            items,
            range(start, min(start + size, config.num_users)),
            shares=config.shares,
            search_share=config.search_share,
            start_time=START_TIME,
            num_days=config.num_days,
            rng=np.random.default_rng([config.seed, 5, number]),
        )


def _merge(blocks: list[Block]) -> Block:
    """Blocks → one, in order of time; sessions and causes renumbered."""
    columns = {
        name: np.concatenate([getattr(block, name) for block in blocks])
        for name in Block.__dataclass_fields__
    }
    sizes = [len(block.user) for block in blocks]
    start = np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)
    sessions = [int(block.session.max(initial=-1)) + 1 for block in blocks]
    columns["session"] += np.repeat(np.cumsum([0, *sessions[:-1]]), sizes)
    order = np.argsort(columns["timestamp"], kind="stable")
    place = np.full(len(order) + 1, -1)
    place[order] = np.arange(len(order))
    cause = columns["cause"]
    columns["cause"] = place[np.where(cause < 0, -1, cause + start)]
    return Block(**{name: column[order] for name, column in columns.items()})


def _name(names: tuple[str, ...] | NDArray[np.object_], code: Ints) -> pa.Array:
    """Codes → strings; -1 is null."""
    index = pa.array(code.astype(np.int32), mask=code < 0)
    return pa.DictionaryArray.from_arrays(index, pa.array(names, pa.string())).cast(pa.string())


def _event_batch(config: SyntheticConfig, items: Items, block: Block) -> pa.RecordBatch:
    columns = {
        "user_id": block.user + USER_ID_START,
        "item_id": external_ids(items)[block.item],
        "timestamp": block.timestamp,
        "behavior": _name(BEHAVIORS, block.behavior),
        "device": _name(DEVICES, block.device),
        "query": _name(topic_queries(items.topics).ravel(), block.query),
    }
    if config.num_domains > 1:
        columns["domain"] = _name(domain_names(config.num_domains), items.domain[block.item])
    return pa.RecordBatch.from_pydict(columns)


def _causes(items: Items, block: Block) -> pa.Table:
    count = len(block.user)
    return pa.table(
        {
            "event": np.arange(count),
            "kind": _name(KINDS, block.kind),
            "cause_event": pa.array(block.cause, mask=block.cause < 0),
            "topic": _name(np.array(items.topics, dtype=object), items.topic[block.item]),
            "session": block.session,
        }
    )


def _impressions(
    config: SyntheticConfig, items: Items, block: Block, price: NDArray[np.float64]
) -> pa.Table:
    """Result lists around a sample of clicks.

    A user looks at position p with probability (1 + p) ** -decay and clicks what is relevant. Lists
    are shuffled before they are shown, so the clicked item's position is drawn from exactly that.
    """
    rng = np.random.default_rng([config.seed, 6])
    clicks = np.flatnonzero(block.behavior == CLICK)
    clicks = clicks[rng.random(len(clicks)) < config.impression_share]
    count, length = len(clicks), config.list_length
    item = block.item[clicks]
    # Others in the list: near (same topic and domain), popular of late, or anything of the domain.
    cell = (items.domain[item] * len(items.topics) + items.topic[item]) * NUM_TIERS
    near = _by_shape(items, cell, (count, length), rng, same_topic=True)
    anything = _by_shape(items, cell, (count, length), rng, same_topic=False)
    shown = np.where(rng.random((count, length)) < 0.5, near, anything)
    look = (1.0 + np.arange(length)) ** -config.position_decay
    position = rng.choice(length, count, p=look / look.sum())
    clicked = rng.random(count) < 0.8
    rows = np.arange(count)
    shown[rows, position] = np.where(clicked, item, shown[rows, position])
    label = np.zeros((3, count, length), np.int8)
    label[0, rows, position] = clicked
    for task, behavior in ((1, CART), (2, ORDER)):
        reached = _clicks_that_led_to(block, behavior)[clicks]
        label[task, rows, position] = clicked & reached
    keep = _first_copies(shown, position)
    columns = {
        "request_id": np.repeat(rows, length).reshape(count, length)[keep],
        "user_id": np.repeat(block.user[clicks] + USER_ID_START, length).reshape(count, length)[
            keep
        ],
        "item_id": external_ids(items)[shown[keep]],
        "timestamp": np.repeat(block.timestamp[clicks], length).reshape(count, length)[keep],
        "position": np.broadcast_to(np.arange(length), shown.shape)[keep],
        "price": price[shown[keep]],
        **{name: label[i][keep] for i, name in enumerate(("click", "cart", "order"))},
    }
    if config.query_share > 0:
        query = np.repeat(block.query[clicks], length).reshape(count, length)[keep]
        columns["query"] = _name(topic_queries(items.topics).ravel(), query)
    if config.num_domains > 1:
        columns["domain"] = _name(domain_names(config.num_domains), items.domain[shown[keep]])
    return pa.table(columns)


def _first_copies(shown: Ints, position: Ints) -> NDArray[np.bool_]:
    """(lists, length) False for an item shown twice; the one at ``position`` stays."""
    ranked = np.where(np.arange(shown.shape[1]) == position[:, None], -1, np.arange(shown.shape[1]))
    order = np.lexsort((ranked, shown), axis=1)
    same = np.diff(np.take_along_axis(shown, order, axis=1), axis=1, prepend=-1) == 0
    keep = np.empty(shown.shape, bool)
    np.put_along_axis(keep, order, ~same, axis=1)
    return keep


def _by_shape(
    items: Items, cell: Ints, shape: tuple[int, int], rng: np.random.Generator, *, same_topic: bool
) -> Ints:
    """Draw items near the given cells, or anywhere in their domain, at equal weights of cells."""
    count, length = shape
    tier = rng.integers(0, NUM_TIERS, shape)
    if not same_topic:
        cells = len(items.topics) * NUM_TIERS
        cell = cell // cells * cells
        tier = rng.integers(0, cells, shape)
    flat = (cell[:, None] + tier).ravel()
    return items.draw(flat, np.zeros(len(flat), np.int64), rng.random(len(flat))).reshape(shape)


def _clicks_that_led_to(block: Block, behavior: int) -> NDArray[np.bool_]:
    """(events,) True where a click has an event of the behavior in its funnel."""
    found = np.zeros(len(block.user), bool)
    rows = np.flatnonzero(block.behavior == behavior)
    source = block.cause[rows]
    found[block.cause[source] if behavior == ORDER else source] = True
    return found


def _with_dirt(events: pa.Table, config: SyntheticConfig) -> pa.Table:
    """Append bad rows, so that row numbers in ``causes`` still hold."""
    rng = np.random.default_rng([config.seed, 7])
    bad = events.take(rng.integers(0, events.num_rows, max(5, events.num_rows // 200)))
    fault = np.arange(bad.num_rows) % 5  # 4 = a plain duplicate
    for number, name in enumerate(("user_id", "item_id", "timestamp")):
        column = pa.array(bad[name].to_numpy(), mask=fault == number)
        bad = bad.set_column(bad.schema.get_field_index(name), name, column)
    times = bad["timestamp"].combine_chunks()
    odd = np.where(np.arange(bad.num_rows) % 2 == 0, FUTURE_TIME, -1)
    times = pa.compute.if_else(pa.array(fault == 3), pa.array(odd), times)
    bad = bad.set_column(bad.schema.get_field_index("timestamp"), "timestamp", times)
    return pa.concat_tables([events, bad]).combine_chunks()


def _write(table: pa.Table, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary, compression="zstd")
    os.replace(temporary, path)
