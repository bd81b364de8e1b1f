"""Tiny prepared data sets written by hand, and tiny models of them: what most tests start from.

`write_dataset` writes the folder that `recsys.data.dataset` documents, so that a test knows every
event by heart; `toy_dataset` is a world whose next item follows from the last one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recsys.batch import ContextBatch, History, Requests
from recsys.config import write_json
from recsys.context.config import ContextConfig
from recsys.context.descriptors import situation_features
from recsys.data.dataset import PreparedDataset
from recsys.model.config import (
    DataSizes,
    EncoderConfig,
    RankerConfig,
    ReasonerConfig,
    RecommenderConfig,
)
from recsys.model.onepiece import OnePiece
from recsys.nn.embedding import FeatureEncoder
from recsys.schema import Feature, Manifest, SplitSpec
from recsys.types import FIRST_BEHAVIOR, FIRST_ID

START = 1_700_000_000
"""Tuesday, 14 November 2023, 22:13:20 UTC."""
HOUR = 3600


@dataclass(frozen=True, kw_only=True)
class User:
    """One row of a history file. Internal ids and codes; times default to one event an hour."""

    item: Sequence[int]
    train_end: int
    valid_end: int | None = None
    timestamp: Sequence[int] | None = None
    behavior: Sequence[int] | None = None
    domain: Sequence[int] | None = None
    event: dict[str, Sequence[Any]] = field(default_factory=dict)
    user: dict[str, Any] = field(default_factory=dict)


def write_arrow(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def history_table(users: Sequence[User], first: int, manifest: Manifest) -> pa.Table:
    lists = {"item": pa.int32(), "timestamp": pa.int64(), "behavior": pa.int8()}
    lists |= {"domain": pa.int16()} if manifest.domains else {}
    columns: dict[str, list[Any]] = {name: [] for name in ("user_id", *lists)}
    for number, user in enumerate(users):
        n = len(user.item)
        hours = [START + HOUR * i for i in range(n)]
        columns["user_id"].append(f"user{first + number}")
        columns["item"].append(list(user.item))
        columns["timestamp"].append(list(hours if user.timestamp is None else user.timestamp))
        columns["behavior"].append(list(user.behavior or [FIRST_BEHAVIOR] * n))
        if manifest.domains:
            columns["domain"].append(list(user.domain or [FIRST_ID] * n))
    arrays = {"user_id": pa.array(columns["user_id"], pa.large_string())}
    arrays |= {name: pa.array(columns[name], pa.large_list(lists[name])) for name in lists}
    for feature in manifest.event_features:
        kind = pa.int32() if feature.kind == "categorical" else pa.float32()
        values = [list(u.event[feature.name]) for u in users]
        arrays[f"event.{feature.name}"] = pa.array(values, pa.large_list(kind))
    for feature in manifest.user_features:
        kind = pa.float32() if feature.kind == "numeric" else pa.int32()
        kind = pa.large_list(kind) if feature.kind == "multi_hot" else kind
        arrays[f"user.{feature.name}"] = pa.array([u.user[feature.name] for u in users], kind)
    ends = [len(u.item) if u.valid_end is None else u.valid_end for u in users]
    arrays["train_end"] = pa.array([u.train_end for u in users], pa.int32())
    arrays["valid_end"] = pa.array(ends, pa.int32())
    return pa.table(arrays)


def write_dataset(
    folder: Path,
    users: Sequence[User],
    *,
    num_trained: int,
    num_untrained: int = 0,
    buckets: Sequence[int] = (),
    coarse: Sequence[int] | None = None,
    item_ids: Sequence[str] | None = None,
    item_values: dict[str, Any] | None = None,
    vocabularies: dict[str, list[str]] | None = None,
    **fields: Any,
) -> PreparedDataset:
    """Write a prepared data set.

    Args:
        folder: Where; made if need be.
        users: All users, bucket after bucket.
        num_trained: Items with internal ids from 2 on.
        num_untrained: Items after those.
        buckets: Users of each bucket; one bucket of all by default.
        coarse: Coarse code of each item after the two reserved rows; the ids' remainder by 3.
        item_ids: External ids of the items after the two reserved rows.
        item_values: Feature name → a value a row, reserved rows included.
        vocabularies: As in ``vocabularies.json``.
        **fields: Of the manifest.
    """
    (folder / "histories").mkdir(parents=True, exist_ok=True)
    num_items = FIRST_ID + num_trained + num_untrained
    codes = [i % 3 + FIRST_ID for i in range(num_items - FIRST_ID)] if coarse is None else coarse
    buckets = buckets or (len(users),)
    manifest = Manifest(
        **{"behaviors": ("interaction",), "num_coarse": FIRST_ID + 3, **fields},
        num_items=num_items,
        num_trained_items=num_trained,
        num_users=len(users),
        num_buckets=len(buckets),
    )
    count = np.zeros(num_items, dtype=np.int64)
    for user in users:
        np.add.at(count, list(user.item)[: user.train_end], 1)
    names = [f"item{i}" for i in range(num_items - FIRST_ID)] if item_ids is None else item_ids
    columns = {
        "item_id": pa.array(["", "", *names], pa.string()),
        "train_count": pa.array(count),
        "coarse": pa.array([0, 0, *codes], pa.int32()),
    }
    kinds = {
        "categorical": pa.int32(),
        "multi_hot": pa.list_(pa.int32()),
        "numeric": pa.float32(),
    }
    for feature in manifest.item_features:
        values = (item_values or {})[feature.name]
        if feature.kind == "text":
            array = np.asarray(values, dtype=np.float32)
            np.save(folder / f"items.{feature.name}.npy", array, allow_pickle=False)
        else:
            columns[feature.name] = pa.array(values, kinds[feature.kind])
    write_arrow(folder / "items.arrow", pa.table(columns))
    first = 0
    for number, size in enumerate(buckets):
        table = history_table(users[first : first + size], first, manifest)
        write_arrow(folder / "histories" / f"{number:05d}.arrow", table)
        first += size
    write_json(folder / "manifest.json", manifest)
    (folder / "vocabularies.json").write_text(json.dumps(vocabularies or {}))
    return PreparedDataset(folder)


def toy_users(
    num_users: int, num_items: int, length: int, seed: int = 0, *, noise: float = 0.0
) -> list[User]:
    """Users who walk round a fixed random cycle of all items, the last two events held out."""
    random = np.random.default_rng(seed)
    cycle = np.random.default_rng(99).permutation(num_items)
    following = np.empty(num_items, dtype=np.int64)
    following[cycle] = np.roll(cycle, -1)
    users = []
    for _ in range(num_users):
        n = int(random.integers(max(3, length // 2), length + 1))
        walk = [int(random.integers(num_items))]
        while len(walk) < n:
            stray = random.random() < noise
            walk.append(int(random.integers(num_items)) if stray else int(following[walk[-1]]))
        users.append(User(item=[i + FIRST_ID for i in walk], train_end=n - 2, valid_end=n - 1))
    return users


def toy_dataset(folder: Path, **options: Any) -> PreparedDataset:
    """40 users on 12 items in two buckets: the next item follows from the last one."""
    return write_dataset(
        folder,
        toy_users(40, 12, 12),
        num_trained=12,
        buckets=(25, 15),
        split=SplitSpec(kind="leave_one_out"),
        **options,
    )


ITEM_FEATURES = (
    Feature(name="type", kind="categorical", rows=4),
    Feature(name="tags", kind="multi_hot", rows=6),
    Feature(name="price", kind="numeric"),
    Feature(name="title", kind="text", width=3),
)
USER_FEATURES = (
    Feature(name="country", kind="categorical", rows=4),
    Feature(name="likes", kind="multi_hot", rows=5),
    Feature(name="age", kind="numeric"),
)
EVENT_FEATURES = (
    Feature(name="device", kind="categorical", rows=4),
    Feature(name="amount", kind="numeric"),
)


def rich_dataset(folder: Path, *, num_users: int = 9, length: int = 8) -> PreparedDataset:
    """Every kind of feature, three behaviors, two domains; 10 trained and 3 untrained items."""
    random = np.random.default_rng(5)
    num_items = FIRST_ID + 13
    users = []
    for _ in range(num_users):
        n = int(random.integers(4, length + 1))
        users.append(
            User(
                item=random.integers(2, 12, n).tolist(),
                train_end=n - 2,
                valid_end=n - 1,
                timestamp=(START + np.cumsum(random.integers(0, 4 * HOUR, n))).tolist(),
                behavior=random.integers(3, 6, n).tolist(),
                domain=random.integers(2, 4, n).tolist(),
                event={
                    "device": random.integers(0, 4, n).tolist(),
                    "amount": random.normal(size=n).tolist(),
                },
                user={
                    "country": int(random.integers(0, 4)),
                    "likes": random.integers(2, 5, random.integers(0, 3)).tolist(),
                    "age": float(random.normal()),
                },
            )
        )
    title = random.normal(size=(num_items, 3))
    title[:2] = 0
    return write_dataset(
        folder,
        users,
        num_trained=10,
        num_untrained=3,
        behaviors=("click", "cart", "order"),
        funnel=("click", "cart", "order"),
        domains=("shop", "news"),
        item_features=ITEM_FEATURES,
        user_features=USER_FEATURES,
        event_features=EVENT_FEATURES,
        item_values={
            "type": [0, 1, *random.integers(1, 4, num_items - 2).tolist()],
            "tags": [[], [], *([2 + i % 4, 3] for i in range(num_items - 2))],
            "price": random.normal(size=num_items).tolist(),
            "title": title,
        },
    )


def tiny_config(
    dataset: PreparedDataset,
    *,
    encoder: dict[str, Any] | None = None,
    reasoner: dict[str, Any] | None = None,
    ranker: dict[str, Any] | None = None,
    anchor_lengths: tuple[int, ...] = (),
) -> RecommenderConfig:
    """Width 8, two layers; embeddings large enough that everything shows."""
    sizes = {"width": 8, "num_heads": 2, "max_history": 12, "dropout": 0.0, "init_std": 0.5}
    return RecommenderConfig(
        data=DataSizes.of(
            dataset.manifest,
            situation=situation_features(dataset.manifest, ContextConfig()),
            anchor_lengths=anchor_lengths,
        ),
        encoder=EncoderConfig(**{**sizes, "feature_width": 4, **(encoder or {})}),
        reasoner=ReasonerConfig(**{"zero_init": False, "isolated": False, **(reasoner or {})}),
        ranker=RankerConfig(**(ranker or {})),
    )


def tiny_model(dataset: PreparedDataset, *, seed: int = 0, **parts: Any) -> OnePiece:
    """A model of a data set in evaluation mode; every parameter random, none at its start value."""
    torch.manual_seed(seed)
    model = OnePiece(tiny_config(dataset, **parts), dataset.catalogue)
    randomise(model, seed)
    return model.eval()


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Give parameters that start at one constant (norms, biases, gates) some spread."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
            with torch.no_grad():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


def in_float64(model: OnePiece) -> OnePiece:
    """Everything behind the tables in float64; TorchRec's lookups answer in float32 always."""
    model.double()
    for module in model.modules():
        if isinstance(module, FeatureEncoder):
            module.float()
    return model


def random_context(
    lengths: Sequence[int],
    cuts: Sequence[Sequence[int]],
    *,
    num_items: int,
    seed: int = 0,
    num_behaviors: int = 1,
) -> ContextBatch:
    """Random histories of the given lengths with requests at the given cuts."""
    g = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(1, *lengths))
    real = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]

    def draw(low: int, high: int, size: tuple[int, int]) -> Tensor:
        return torch.randint(low, high, size, generator=g)

    time = START + draw(1, 5 * HOUR, shape).cumsum(dim=1)
    cut = torch.tensor(cuts)
    history = History(
        item=torch.where(real, draw(2, num_items, shape), 0),
        behavior=torch.where(real, draw(3, 3 + num_behaviors, shape), 0),
        timestamp=torch.where(real, time, 0),
        gap=torch.where(real, draw(0, 20, shape), 0),
        block=real.long(),
        lengths=torch.tensor(lengths),
    )
    asked = (cut.shape[0], cut.shape[1])
    requests = Requests(
        cut=cut,
        is_real=torch.ones_like(cut, dtype=torch.bool),
        timestamp=time.gather(1, (cut - 1).clamp(min=0)) + draw(1, HOUR, asked),
        gap=draw(0, 20, asked),
        situation={
            "hour": draw(1, 25, asked),
            "weekday": draw(1, 8, asked),
            "gap": draw(0, 20, asked),
        },
    )
    return ContextBatch(history, requests)


def only_request(batch: ContextBatch, q: int) -> ContextBatch:
    """The same histories with one of their requests."""
    r = batch.requests
    kept = replace(
        r,
        cut=r.cut[:, q : q + 1],
        is_real=r.is_real[:, q : q + 1],
        timestamp=r.timestamp[:, q : q + 1],
        gap=r.gap[:, q : q + 1],
        situation={name: value[:, q : q + 1] for name, value in r.situation.items()},
    )
    return replace(batch, requests=kept)


def only_row(batch: ContextBatch, b: int, *, trim: bool = True) -> ContextBatch:
    """One row of a batch, its padding cut off unless ``trim`` is False."""
    h, r, rows = batch.history, batch.requests, slice(b, b + 1)
    width = max(1, int(h.lengths[b])) if trim else h.item.shape[1]

    def cut(value: Tensor) -> Tensor:
        return value[rows, :width]

    history = History(
        item=cut(h.item),
        behavior=cut(h.behavior),
        timestamp=cut(h.timestamp),
        gap=cut(h.gap),
        block=cut(h.block),
        lengths=h.lengths[rows],
        features={name: cut(value) for name, value in h.features.items()},
    )
    requests = replace(
        r,
        cut=r.cut[rows],
        is_real=r.is_real[rows],
        timestamp=r.timestamp[rows],
        gap=r.gap[rows],
        situation={name: value[rows] for name, value in r.situation.items()},
    )
    return ContextBatch(history, requests, {name: v[rows] for name, v in batch.user.items()})
