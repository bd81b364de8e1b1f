"""A line of items, a model that answers with the last item read, and buckets of histories."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from recsys.batch import CandidateSet, ContextBatch
from recsys.cascade.retrieve import Retriever
from recsys.context.config import ContextConfig
from recsys.data.dataset import Catalogue, Histories
from recsys.schema import Feature, Manifest

# Items 2 … 5 are trained, 6 is not. Neighbours on a line: 2 3 4 5 6.
ANGLE = torch.tensor([0.0, 0.0, 0.1, 0.2, 0.4, 0.8, 0.9])
VECTORS = torch.stack([ANGLE.cos(), ANGLE.sin()], dim=1)


class LastItem:
    """Answers with the vector of the last item read, and remembers what it was shown.

    It ranks by the item id, the higher the better, for each of its tasks; a task halves the logit.
    """

    def __init__(self, vectors: Tensor = VECTORS, *, tasks: int = 0) -> None:
        self.vectors, self.tasks, self.can_rank = vectors, tasks, tasks > 0
        self.gaps: list[int] = []
        self.reads = 0
        self.groups: list[list[int]] = []

    def item_vectors(self) -> Tensor:
        return self.vectors

    def answers(self, context: ContextBatch, items: Tensor | None = None) -> Tensor:
        assert items is not None
        self.gaps += context.requests.gap[:, 0].tolist()
        return items[context.history.item.gather(1, context.requests.cut - 1)]

    def read(self, context: ContextBatch, items: Tensor | None = None) -> Any:
        self.reads += 1
        return self.answers(context, items)

    def query_of(self, state: Any) -> Tensor:
        return state

    def rank_of(self, state: Any, candidates: CandidateSet) -> Tensor:
        assert len(state) == len(candidates.item)
        self.groups += candidates.item.flatten(0, 2).sort(dim=1).values.tolist()
        scale = 0.5 ** torch.arange(self.tasks)
        return candidates.item[..., None].float() * scale


def bucket_of(folder: Path, items: list[list[int]], times: list[list[int]]) -> Histories:
    lists = {
        "item": pa.array(items, pa.large_list(pa.int32())),
        "timestamp": pa.array(times, pa.large_list(pa.int64())),
        "behavior": pa.array([[3] * len(row) for row in items], pa.large_list(pa.int8())),
    }
    ends = pa.array([len(row) for row in items], pa.int32())
    users = pa.array([f"u{i}" for i in range(len(items))], pa.large_string())
    table = pa.table({"user_id": users, **lists, "train_end": ends, "valid_end": ends})
    with pa.OSFile(str(folder / "b.arrow"), "wb") as sink:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return Histories(folder / "b.arrow")


def catalogue_of() -> Catalogue:
    """Items a … e: 3 and 4 are the most popular; prices; categories 2 (a, b, c) and 3."""
    return Catalogue(
        item_ids=pa.array(["", "", "a", "b", "c", "d", "e"]),
        train_count=torch.tensor([0, 0, 5, 9, 9, 1, 0]),
        coarse=torch.tensor([0, 0, 2, 2, 2, 3, 3]),
        num_trained=4,
        features=(Feature(name="price", kind="numeric", mean=10.0, scale=2.0),),
        values={"price": torch.tensor([0.0, 0.0, 4.0, 3.0, 2.0, 1.0, 0.0])},
        lists={},
    )


def retriever_of(tasks: int = 0, **changes: Any) -> tuple[Retriever, LastItem]:
    model = LastItem(tasks=tasks)
    manifest = Manifest(behaviors=("view",), has_time=bool(changes.pop("has_time", True)))
    context = ContextConfig(max_history=3, group_size=2)
    return Retriever(model, catalogue_of(), manifest, context, **changes), model


HISTORIES = [[2, 3], [], [1], [5, 4, 3, 2], [4]]
TIMES = [[100, 200], [], [100], [10, 20, 30, 40], [300]]
