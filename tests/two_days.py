"""The same logs on two days: today other internal ids, more items, more words."""

from pathlib import Path
from typing import Any

from tiny_world import START, User, write_dataset

from recsys.data.dataset import PreparedDataset
from recsys.schema import Feature
from recsys.types import FIRST_BEHAVIOR, FIRST_ID, UNKNOWN

FACTS = {
    "a": ("book", ["new", "sale"], 0.1),
    "b": ("film", [], -0.3),
    "c": ("book", ["sale"], 0.7),
    "d": ("game", ["new", "rare"], 1.1),
    "e": ("film", ["rare"], -2.0),
}
LOGS = {
    "de": [("a", "click", "tv"), ("b", "cart", "pc"), ("c", "click", "pc")],
    "fr": [("c", "click", "tv"), ("a", "click", "tv"), ("b", "click", "pc"), ("a", "cart", "tv")],
}
OLD: dict[str, Any] = {
    "trained": ["a", "b", "c"],
    "untrained": ["e"],
    "item.type": ["book", "film"],
    "item.tags": ["new", "sale", "rare"],
    "user.country": ["de", "fr"],
    "event.device": ["tv", "pc"],
    "behaviors": ["click", "cart"],
}
NEW: dict[str, Any] = {
    "trained": ["d", "c", "b", "e", "a"],
    "untrained": [],
    "item.type": ["game", "film", "book"],
    "item.tags": ["rare", "gift", "sale", "new"],
    "user.country": ["us", "fr", "de"],
    "event.device": ["pc", "phone", "tv"],
    "behaviors": ["save", "cart", "click"],
}


def code(words: list[str], word: str) -> int:
    return words.index(word) + FIRST_ID if word in words else UNKNOWN


def write_day(folder: Path, words: dict[str, Any], *, held_back: int = 0) -> PreparedDataset:
    """The logs and facts above under one day's vocabularies; a user's last events may be a test."""
    items = [*words["trained"], *words["untrained"]]
    users = [
        User(
            item=[code(items, item) for item, _, _ in events],
            train_end=len(events) - held_back,
            valid_end=len(events) - held_back,
            timestamp=[START + 1000 * i for i in range(len(events))],
            behavior=[words["behaviors"].index(kind) + FIRST_BEHAVIOR for _, kind, _ in events],
            event={"device": [code(words["event.device"], d) for _, _, d in events]},
            user={"country": code(words["user.country"], country)},
        )
        for country, events in LOGS.items()
    ]
    facts = [FACTS[item] for item in items]

    def sized(owner: str, name: str, kind: Any) -> Feature:
        return Feature(name=name, kind=kind, rows=len(words[f"{owner}.{name}"]) + FIRST_ID)

    return write_dataset(
        folder,
        users,
        num_trained=len(words["trained"]),
        num_untrained=len(words["untrained"]),
        item_ids=items,
        behaviors=tuple(words["behaviors"]),
        item_features=(
            sized("item", "type", "categorical"),
            sized("item", "tags", "multi_hot"),
            Feature(name="price", kind="numeric"),
        ),
        user_features=(sized("user", "country", "categorical"),),
        event_features=(sized("event", "device", "categorical"),),
        item_values={
            "type": [0, 1, *(code(words["item.type"], kind) for kind, _, _ in facts)],
            "tags": [
                [],
                [],
                *([code(words["item.tags"], t) for t in tags] for _, tags, _ in facts),
            ],
            "price": [0.0, 0.0, *(price for _, _, price in facts)],
        },
        vocabularies={key: value for key, value in words.items() if "." in key},
    )
