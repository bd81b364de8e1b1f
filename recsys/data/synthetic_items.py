"""Items of the synthetic world: topics, prices, words, popularity in time, likely follow-ups.

Items are sorted into *cells* of (domain, topic, price tier). A taste picks a cell, the time picks
weights inside it. A topic is a category; its words make up titles and texts, so that text predicts
taste. The category of a click's item is what the truth calls its topic.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

NUM_TIERS = 3
NUM_FOLLOW_UPS = 3
FOLLOW_UP_SHARES = (0.6, 0.25, 0.15)
"""Probability of an item's first, second and third follow-up, given a transition."""
NUM_BINS = 12
"""Stretches of the period; popularity is constant inside one."""
TREND_DAYS = 3
NUM_TRENDING = 6
"""Items that trend at once in a domain."""
NUM_PHRASES = 4
"""Search phrases that lead to a topic."""
ANSWER_DAYS = 6
NUM_ANSWERS = 5
"""Items that searchers of one phrase want at once in a domain."""
LATE_SHARE = 0.1
"""Items released after the period's start: cold when they come."""
ITEM_ID_START = 10_000

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

TOPICS: dict[str, dict[str, str]] = {
    "sports": {
        "running": "shoes marathon jogging sprint laces cushion trail pace breathable reflective",
        "cycling": "bicycle helmet pedal saddle brake wheel gravel commute chain tyre",
        "swimming": "goggles pool swimsuit fins lane freestyle chlorine towel snorkel cap",
        "camping": "tent lantern sleeping backpack campfire stove hammock compass waterproof peg",
    },
    "kitchen": {
        "coffee": "espresso grinder beans roast filter mug crema barista brew kettle",
        "baking": "dough oven flour whisk cake muffin sourdough yeast spatula icing",
        "knives": "blade chef steel sharpening carving cutting board edge handle paring",
        "spices": "pepper cumin paprika saffron turmeric seasoning curry jar blend aroma",
    },
    "electronics": {
        "headphones": "wireless bass earbuds quiet microphone stereo cable audio studio volume",
        "photography": "camera lens tripod aperture shutter zoom flash portrait sensor filter",
        "gaming": "console controller joystick keyboard mouse headset arcade pixel racing quest",
        "smart-home": "thermostat bulb sensor doorbell voice assistant plug hub automation dimmer",
    },
    "books": {
        "mystery": "detective murder clue suspect crime noir alibi thriller inspector secret",
        "science-fiction": "galaxy robot starship alien planet android future cyber orbit colony",
        "cooking-books": "recipes vegetarian dinner italian weeknight chef pantry soup salad feast",
        "travel-guides": "city map itinerary island museum hotel backpacking coast train passport",
    },
    "garden": {
        "vegetables": "seeds tomato carrot compost soil harvest pepper greenhouse organic sprout",
        "flowers": "tulip rose bulb bouquet petal blossom orchid lily perennial vase",
        "tools": "shovel rake pruner hose wheelbarrow gloves trowel hedge lawn watering",
        "furniture": "bench parasol patio teak lounger cushion swing table rattan deck",
    },
    "beauty": {
        "skincare": "cream serum moisturiser cleanser sunscreen toner vitamin retinol mask gentle",
        "haircare": "shampoo conditioner brush dryer curl keratin scalp styling serum comb",
        "perfume": "fragrance vanilla citrus jasmine musk bottle spray floral amber woody",
        "makeup": "lipstick mascara foundation palette blush eyeliner powder concealer matte gloss",
    },
}
TIER_WORDS = (("basic", "value"), ("classic", "everyday"), ("premium", "deluxe"))
COMMON_WORDS = (
    "new great quality gift popular easy perfect best for with and set size colour".split()
)
SYLLABLES = "ba ko ri lu ne ta mi so ve du pa zo ker lan tis mor".split()


@dataclass(frozen=True, slots=True)
class Items:
    """The truth about items. Arrays have a row an item, in the order of the items table."""

    topics: tuple[str, ...]
    """Category names; a topic is an index here."""
    num_domains: int
    topic: Ints
    domain: Ints
    tier: Ints
    """Price tier 0, 1, 2."""
    release_bin: Ints
    """First time bin in which the item exists."""
    follow_ups: Ints
    """(N, 3) rows of the items that tend to follow, likeliest first."""
    trending: Ints
    """(trend periods, domains, trending) rows."""
    answers: Ints
    """(answer periods, domains, queries, answers) rows of the query's topic."""
    _order: Ints
    _cell_start: Ints
    _cumulative: Floats

    def draw(self, cell: Ints, time_bin: Ints, random: Floats) -> Ints:
        """Draw an item of a cell by its popularity at a time.

        Args:
            cell: ``(n,)`` cells, ``(domain · topics + topic) · 3 + tier``.
            time_bin: ``(n,)`` time bins.
            random: ``(n,)`` uniform numbers in [0, 1).

        Returns:
            ``(n,)`` item rows, only items already released.
        """
        base = time_bin * len(self._order)
        low = self._cumulative[base + self._cell_start[cell]]
        high = self._cumulative[base + self._cell_start[cell + 1]]
        place = np.searchsorted(self._cumulative, low + random * (high - low), side="right") - 1
        place = np.clip(place - base, self._cell_start[cell], self._cell_start[cell + 1] - 1)
        found: Ints = self._order[place]
        return found


def make_items(
    *, num_items: int, num_domains: int, num_topics: int, num_days: int, rng: np.random.Generator
) -> Items:
    """Draw the items' truth.

    Args:
        num_items: N, at least 6 a domain.
        num_domains: Services; each has items of every topic.
        num_topics: Most topics; fewer where a topic would have under 6 items.
        num_days: Length of the period, for trends.
        rng: Randomness.

    Returns:
        The items.
    """
    topics = tuple(_words(num_topics))[: max(1, min(num_topics, num_items // num_domains // 6))]
    cells = num_domains * len(topics) * NUM_TIERS
    cell = rng.permutation(np.arange(num_items) % cells)
    order = np.argsort(cell, kind="stable")
    cell_start = np.searchsorted(cell[order], np.arange(cells + 1))
    release = np.where(rng.random(num_items) < LATE_SHARE, rng.integers(1, NUM_BINS, num_items), 0)
    release[order[cell_start[1:] - 1]] = 0  # the last of a cell is always there
    rank = rng.permuted(np.arange(num_items))[order]  # popularity inside a cell, at random
    place = np.argsort(np.lexsort((rank, cell[order]))) - cell_start[cell[order]]
    drift = np.linspace(-1, 1, NUM_BINS)[:, None] * rng.normal(0, 0.8, num_items)
    weight = (place + 1.0) ** -0.85 * np.exp(drift)
    weight[np.arange(NUM_BINS)[:, None] < release[order]] = 0
    group = cell // NUM_TIERS  # (domain, topic)
    always = [
        np.flatnonzero((release == 0) & (group // len(topics) == d)) for d in range(num_domains)
    ]
    periods = -(-num_days // TREND_DAYS)
    follow_ups = _follow_ups(group, release, order, cell_start, len(topics), rng)
    trending = np.stack([rng.choice(rows, (periods, NUM_TRENDING)) for rows in always], axis=1)
    return Items(
        topics=topics,
        num_domains=num_domains,
        topic=group % len(topics),
        domain=group // len(topics),
        tier=cell % NUM_TIERS,
        release_bin=release,
        follow_ups=follow_ups,
        trending=trending,
        answers=_answers(
            group, release, num_domains, len(topics), -(-num_days // ANSWER_DAYS), rng
        ),
        _order=order,
        _cell_start=cell_start,
        _cumulative=np.concatenate(([0.0], np.cumsum(weight))),
    )


def _follow_ups(
    group: Ints, release: Ints, order: Ints, cell_start: Ints, topics: int, rng: np.random.Generator
) -> Ints:
    """Three follow-ups an item: mostly of its topic, else of one related topic; never newer."""
    start = cell_start[::NUM_TIERS]
    related = rng.integers(0, topics, len(start) - 1) + np.arange(len(start) - 1) // topics * topics
    crosses = rng.random((len(group), NUM_FOLLOW_UPS)) < 0.25
    home = np.where(crosses, related[group][:, None], group[:, None])
    found = np.repeat(np.arange(len(group))[:, None], NUM_FOLLOW_UPS, axis=1)
    for _ in range(10):  # draw again what is the item itself, newer than it, or a repeat
        bad = (found == np.arange(len(group))[:, None]) | (release[found] > release[:, None])
        bad[:, 1:] |= found[:, 1:] == found[:, :-1]
        bad[:, 2] |= found[:, 2] == found[:, 0]
        if not bad.any():
            break
        low, high = start[home[bad]], start[home[bad] + 1]
        found[bad] = order[low + (rng.random(len(low)) * (high - low)).astype(np.int64)]
    newer = release[found] > release[:, None]
    found[newer] = np.broadcast_to(np.arange(len(group))[:, None], found.shape)[newer]
    return found


def _answers(
    group: Ints, release: Ints, domains: int, topics: int, periods: int, rng: np.random.Generator
) -> Ints:
    """What each query's searchers want in each period: items of its topic, always there."""
    always = [np.flatnonzero((group == one) & (release == 0)) for one in range(domains * topics)]
    drawn = [rng.choice(rows, (periods, NUM_PHRASES, NUM_ANSWERS)) for rows in always]
    found: Ints = np.stack(drawn, axis=1)
    return found.reshape(periods, domains, topics * NUM_PHRASES, NUM_ANSWERS)


def items_table(items: Items, *, seed: int) -> pa.Table:
    """Describe the items as a shop would: title, text, categories, brand, price.

    Args:
        items: The truth.
        seed: Of words and prices.

    Returns:
        A row an item; ``domain`` only where there are several. Item ids are unique inside a domain.
    """
    rng = np.random.default_rng([seed, 2])
    count = len(items.topic)
    words = _words(len(items.topics))
    vocabulary = np.array([words[name][1] for name in items.topics], dtype=object)  # (topics, 10)
    kinds = items.topic
    sub = rng.integers(0, 3, count)
    own = vocabulary[kinds[:, None], rng.integers(3, vocabulary.shape[1], (count, 9))]
    sub_word = vocabulary[kinds, sub]
    tier_word = np.array(TIER_WORDS, dtype=object)[items.tier, rng.integers(0, 2, count)]
    common = np.array(COMMON_WORDS, dtype=object)[rng.integers(0, len(COMMON_WORDS), (count, 5))]
    # A brand serves one topic and mostly one price tier.
    tier = np.where(rng.random(count) < 0.8, items.tier, rng.integers(0, NUM_TIERS, count))
    brand = _brands(len(items.topics) * NUM_TIERS)[kinds * NUM_TIERS + tier]
    level = np.exp(np.random.default_rng([seed, 3]).normal(3, 0.6, len(items.topics)))
    price = level[kinds] * np.array([0.5, 1, 2.5])[items.tier] * np.exp(rng.normal(0, 0.15, count))
    title = np.stack([brand, tier_word, sub_word, own[:, 0]], axis=1)
    text = np.concatenate([tier_word[:, None], sub_word[:, None], own, common], axis=1)
    columns = {
        "item_id": external_ids(items),
        "title": [" ".join(row) for row in title.tolist()],
        "text": [" ".join(row) for row in rng.permuted(text, axis=1).tolist()],
        "categories": [
            [words[name][0], name, f"{name}/{word}"]
            for name, word in zip(np.array(items.topics)[kinds].tolist(), sub_word, strict=True)
        ],
        "brand": brand,
        "price": price.round(2),
    }
    if items.num_domains > 1:
        columns["domain"] = domain_names(items.num_domains)[items.domain]
    return pa.table(columns)


def external_ids(items: Items) -> Ints:
    """The item ids of the logs; each domain numbers its own items, so ids repeat across domains."""
    found = np.zeros(len(items.domain), np.int64)
    for domain in range(items.num_domains):
        own = items.domain == domain
        found[own] = np.arange(own.sum())
    return found + ITEM_ID_START


def domain_names(num_domains: int) -> NDArray[np.object_]:
    """Names of the services."""
    return np.array([f"service-{chr(ord('a') + i)}" for i in range(num_domains)], dtype=object)


def topic_queries(topics: tuple[str, ...]) -> NDArray[np.object_]:
    """(topics, phrases) search phrases that lead to each topic."""
    words = _words(len(topics))
    return np.array(
        [
            [" ".join(words[name][1][2 * i : 2 * i + 2]) for i in range(NUM_PHRASES)]
            for name in topics
        ],
        dtype=object,
    )


def _words(num_topics: int) -> dict[str, tuple[str, list[str]]]:
    """Topic → its department and ten words; beyond the written ones, words are made up."""
    found = {
        name: (department, text.split())
        for department, topics in TOPICS.items()
        for name, text in topics.items()
    }
    for extra in range(len(found), num_topics):
        stem = _brands(extra + 1)[extra].lower()
        found[f"topic-{extra}"] = (
            f"department-{extra // 4}",
            [f"{stem}{s}" for s in SYLLABLES[:10]],
        )
    return found


def _brands(count: int) -> NDArray[np.object_]:
    base = len(SYLLABLES)
    return np.array(
        [
            (SYLLABLES[i % base] + SYLLABLES[i // base % base] + SYLLABLES[i * 7 % base]).title()
            + (str(i // base**2) if i >= base**2 else "")
            for i in range(count)
        ],
        dtype=object,
    )
