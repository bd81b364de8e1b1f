"""Candidate lists for logs without impressions: what a model's own retrieval answers.

A request is the one of the retrieval's evaluation: the moment of a target. Its candidates are the
retrieval's best items, seen ones taken out, and its labels the next item of every task. A target
that the retrieval missed is *not* among them: put in by hand it would be known by its low rank, and
any ranker that reads scores would learn so. The lists are those the cascade meets.
"""

from typing import Literal, Protocol

import torch
from torch import Tensor

from recsys.batch import ContextBatch
from recsys.context.anchors import AnchorReader
from recsys.context.config import ContextConfig
from recsys.context.descriptors import asked_at
from recsys.context.impressions import PARTS, RequestLists
from recsys.context.loader import evaluation_batches, next_of_tasks
from recsys.data.dataset import Histories, Jagged, PreparedDataset
from recsys.retrieval.index import BruteForceIndex
from recsys.schema import Manifest
from recsys.types import FIRST_ID, PAD


class Retrieves(Protocol):
    """What is needed of a model."""

    def item_vectors(self) -> Tensor:
        """(N, D) float32."""
        ...

    def answers(self, context: ContextBatch, items: Tensor | None = None) -> Tensor:
        """The answering query vectors, (B, Q, D)."""
        ...


@torch.inference_mode()
def retrieved_lists(
    dataset: PreparedDataset,
    model: Retrieves,
    config: ContextConfig,
    *,
    part: Literal["validation", "test"],
    num_candidates: int,
    filter_seen: bool = True,
    max_users: int | None = None,
    batch_size: int = 256,
    anchors: AnchorReader | None = None,
    device: torch.device | str = "cpu",
) -> tuple[RequestLists, ...]:
    """Answer the requests of a part, as lists to be ranked.

    Args:
        dataset: Where the requests are.
        model: Whose retrieval answers, in evaluation mode.
        config: How the model reads histories.
        part: Which part's requests.
        num_candidates: Items a list, at least 1.
        filter_seen: Take the items of the user's history out.
        max_users: About so many users, spread evenly; all by default.
        batch_size: Requests at once.
        anchors: Reads preference anchors, where the config names some.
        device: Where the model is.

    Returns:
        Lists of each bucket, best item first, by user and time. Of one item that is the next of
        several tasks the strongest counts; a request none of whose targets was found has a list
        without a positive.

    Raises:
        ValueError: If ``num_candidates`` is below 1.
    """
    if num_candidates < 1:
        raise ValueError(f"num_candidates ({num_candidates}) must be at least 1.")
    vectors = model.item_vectors().to(device, torch.float32)
    trained = torch.zeros(len(vectors), dtype=torch.bool, device=device)
    trained[FIRST_ID : FIRST_ID + dataset.catalogue.num_trained] = True
    index = BruteForceIndex(vectors, trained)
    sizes = torch.tensor([0, *(bucket.num_users for bucket in dataset.buckets)])
    first_user = sizes.cumsum(0)
    found: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in dataset.buckets]
    for batch in evaluation_batches(
        dataset, config, part=part, batch_size=batch_size, max_users=max_users, anchors=anchors
    ):
        query = model.answers(batch.context.to(device), vectors)[:, 0].float()
        exclude = batch.seen.to(device) if filter_seen else None
        ids = index.search(query, num_candidates, exclude=exclude)[1].cpu().clamp(min=PAD)
        # A batch is of one bucket.
        number = int(torch.searchsorted(first_user, batch.user_index[:1], right=True)) - 1
        found[number].append((batch.user_index - first_user[number], batch.history_length, ids))
    return tuple(
        _lists(bucket, dataset.manifest, part, parts, num_candidates)
        for bucket, parts in zip(dataset.buckets, found, strict=True)
    )


def _lists(
    bucket: Histories,
    manifest: Manifest,
    part: Literal["validation", "test"],
    parts: list[tuple[Tensor, Tensor, Tensor]],
    num_candidates: int,
) -> RequestLists:
    none = torch.zeros(0, dtype=torch.long)
    user = torch.cat([none, *(p[0] for p in parts)])
    place = torch.cat([none, *(p[1] for p in parts)])
    item = torch.cat([none.view(0, num_candidates), *(p[2] for p in parts)])
    order = (user * (1 + place.max() if len(place) else 1) + place).argsort()
    user, place, item = user[order], place[order], item[order]
    level = torch.zeros_like(item)
    start = bucket.offsets[user]
    end = start + bucket.valid_end[user] if part == "validation" else bucket.offsets[user + 1]
    targets = next_of_tasks(bucket, manifest, start + place, end)
    for task, target in enumerate(targets.unbind(dim=1)):
        level[(item == target[:, None]) & (item != PAD)] = task + 1
    at = bucket.offsets[user] + place
    real = item != PAD
    offsets = torch.cat((torch.zeros(1, dtype=torch.long), real.sum(dim=1).cumsum(0)))
    return RequestLists(
        user=user,
        timestamp=bucket.events["timestamp"].values[at],
        place=place,
        part=torch.full_like(user, PARTS.index(part)),
        item=Jagged(item[real], offsets),
        label=Jagged(level[real], offsets),
        position=Jagged(torch.zeros_like(item[real]), offsets),
        situation=asked_at(bucket, manifest, at),
    )
