"""The retrieval stage: histories read in batches, queries searched in an index over the items.

Users of whom no known item is visible cannot be answered by the model; they get the items with the
most training events.
"""

from collections.abc import Iterator
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from recsys.batch import CandidateSet, ContextBatch
from recsys.context.anchors import AnchorReader
from recsys.context.config import ContextConfig
from recsys.context.loader import history_batches
from recsys.data.dataset import Catalogue, Histories
from recsys.retrieval.approximate import FaissIndex, HnswConfig
from recsys.retrieval.index import NONE_ID, NONE_SCORE, BruteForceIndex, ItemIndex, pad_found, top_k
from recsys.schema import Manifest
from recsys.types import FIRST_ID

Candidates = Literal["trained", "all"]
RECALL_USERS = 256
"""Users on whom an approximate index is compared with the exact one."""


class CascadeModel(Protocol):
    """What the cascade needs of a model."""

    @property
    def can_rank(self) -> bool:
        """Whether there is a ranking stage."""
        ...

    def item_vectors(self) -> Tensor:
        """Vectors of all items, (N, D) float32."""
        ...

    def answers(self, context: ContextBatch, items: Tensor | None = None) -> Tensor:
        """The answering query vectors alone, (B, Q, D)."""
        ...

    def read(self, context: ContextBatch, items: Tensor | None = None) -> Any:
        """Read requests once, for both stages."""
        ...

    def query_of(self, state: Any) -> Tensor:
        """The answering query vectors of what was read, (B, Q, D)."""
        ...

    def rank_of(self, state: Any, candidates: CandidateSet) -> Tensor:
        """Logits of candidates by task, (B, Q, G, C, S)."""
        ...


class Retriever:
    """A model with its items and an index over them.

    Args:
        model: In evaluation mode.
        catalogue: The items it was trained on.
        manifest: Of the data set it was trained on.
        context: How it reads histories.
        candidates: ``trained`` recommends items with a training event; ``all`` the others too,
            which the model knows only by their features.
        hnsw: Search by a graph of this size; None searches exactly.
        anchors: Reads preference anchors, where the model does.
        device: Where the model is.
    """

    def __init__(
        self,
        model: CascadeModel,
        catalogue: Catalogue,
        manifest: Manifest,
        context: ContextConfig,
        *,
        candidates: Candidates = "trained",
        hnsw: HnswConfig | None = None,
        anchors: AnchorReader | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model = model
        self.manifest = manifest
        self.context = context
        self.anchors = anchors
        self.device = torch.device(device)
        self.item_vectors = model.item_vectors().detach().to(self.device, torch.float32)
        self.recommendable = torch.zeros(catalogue.num_items, dtype=torch.bool)
        stop = FIRST_ID + catalogue.num_trained if candidates == "trained" else catalogue.num_items
        self.recommendable[FIRST_ID:stop] = True
        self.exact = BruteForceIndex(self.item_vectors, self.recommendable.to(self.device))
        self.index: ItemIndex = self.exact
        if hnsw is not None:
            self.index = FaissIndex(self.item_vectors.cpu(), self.recommendable, config=hnsw)
        self._train_count = catalogue.train_count

    def popular(self, k: int, allow: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The items with the most training events, ties by id.

        Args:
            k: How many.
            allow: Items that may be returned, (N,) bool; None for all.

        Returns:
            Training events (k,) float32 and internal ids (k,) int64; -inf and -1 where none is
                left.
        """
        allowed = self.recommendable if allow is None else self.recommendable & allow
        counts = self._train_count.double().masked_fill(~allowed, NONE_SCORE)[None]
        scores, ids = pad_found(*top_k(counts, k), k)
        return scores[0].float(), ids[0]

    def check_moment(self, as_of: int | None) -> None:
        """Refuse a moment where the logs have no times.

        Raises:
            ValueError: If ``as_of`` is given and the model was trained on an order column.
        """
        if as_of is not None and not self.manifest.has_time:
            raise ValueError(
                f"as_of ({as_of}) needs times, but the model was trained on logs with an order "
                "column only: cut the events before passing them."
            )

    def answerable(self, bucket: Histories, rows: Tensor, *, as_of: int | None = None) -> Tensor:
        """Which users have a visible event with a known item.

        Args:
            bucket: The users.
            rows: Which of them, (R,) int64.
            as_of: Events at or after it are not visible; None for all visible.

        Returns:
            (R,) bool.
        """
        start = bucket.offsets[rows]
        length = bucket.offsets[rows + 1] - start
        owner = torch.arange(len(rows)).repeat_interleave(length)
        at = torch.arange(len(owner)) + (start - length.cumsum(0) + length)[owner]
        known = bucket.events["item"].values[at] >= FIRST_ID
        if as_of is not None:
            known &= bucket.events["timestamp"].values[at] < as_of
        found = torch.zeros(len(rows), dtype=torch.bool)
        found[owner[known]] = True
        return found

    def batches(
        self,
        bucket: Histories,
        rows: Tensor,
        *,
        as_of: int | None = None,
        batch_size: int = 256,
        anchors: AnchorReader | None = None,
    ) -> Iterator[tuple[Tensor, ContextBatch, Tensor]]:
        """Read histories batch by batch, rows of like length together.

        Args:
            bucket: The users.
            rows: Which of them, (R,) int64.
            as_of: Moment of scoring, seconds since 1970; events at or after it are not seen.
                None answers right after each user's last event.
            batch_size: B.
            anchors: Reads preference anchors instead of the retriever's own.

        Yields:
            Rows of the bucket (B,), the batch on the model's device, and the items seen (B, L)
            padded with ``PAD``.
        """
        if not len(rows):
            return
        for row, context, seen in history_batches(
            bucket,
            self.manifest,
            self.context,
            rows=rows,
            as_of=as_of,
            batch_size=batch_size,
            anchors=anchors or self.anchors,
        ):
            yield row, context.to(self.device), seen

    def query(self, context: ContextBatch) -> Tensor:
        """The answering query vectors of a batch, (B, D) float32."""
        return self.model.answers(context, self.item_vectors)[:, 0].float()

    def search(
        self, query: Tensor, k: int, *, exclude: Tensor | None = None, allow: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Find the best items of each query, whichever device the index is on.

        Args:
            query: (B, D).
            k: Items a query.
            exclude: Internal ids never to return, (B, L) int64, padded with ``PAD``.
            allow: Items that may be returned, (N,) bool.

        Returns:
            Scores and internal ids, (B, k) on the CPU; -inf and -1 where none is left.
        """
        device = torch.device("cpu") if self.is_approximate else self.device
        scores, ids = self.index.search(
            query.to(device),
            k,
            exclude=None if exclude is None else exclude.to(device),
            allow=None if allow is None else allow.to(device),
        )
        return scores.cpu(), ids.cpu()

    @property
    def is_approximate(self) -> bool:
        """Whether the index may miss items."""
        return self.index is not self.exact

    @torch.inference_mode()
    def index_recall(self, bucket: Histories, k: int) -> float | None:
        """Compare an approximate index with the exact one.

        Args:
            bucket: Its users, at most ``RECALL_USERS`` of them spread evenly, ask.
            k: Items each asks for.

        Returns:
            Share of the exact top k that the index finds; None where the bucket has no user that
            the model can answer.
        """
        rows = torch.arange(bucket.num_users)
        rows = rows[self.answerable(bucket, rows)]
        rows = rows[torch.linspace(0, max(0, len(rows) - 1), min(RECALL_USERS, len(rows))).long()]
        found = right = 0
        for _, context, _ in self.batches(bucket, rows):
            query = self.query(context)
            ids = self.search(query, k)[1]
            exact = self.exact.search(query, k)[1].cpu()
            real = exact != NONE_ID
            found += int(((ids[:, :, None] == exact[:, None]) & real[:, None]).sum())
            right += int(real.sum())
        return found / right if right else None
