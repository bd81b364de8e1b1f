"""The retrieval stage of the cascade, in internal ids: a bucket of histories in, top k out.

Users of whom no known item is visible cannot be answered by the model; they get the items with the
most training events, and the ranking says so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recsys.batch import ContextBatch
from recsys.context.config import ContextConfig
from recsys.context.loader import history_batches
from recsys.data.dataset import Catalogue, Histories
from recsys.retrieval.index import NONE_ID, NONE_SCORE, BruteForceIndex, ItemIndex, pad_found, top_k
from recsys.schema import Manifest
from recsys.types import FIRST_ID

Candidates = Literal["trained", "all"]
SOURCES = ("retrieval", "popular")
"""Values of the ``source`` column: the model, or the fallback for users without history."""


class QueryModel(Protocol):
    """What the cascade needs of a model."""

    def queries(self, context: ContextBatch, items: Tensor | None = None) -> dict[str, Tensor]:
        """Head → query vectors (B, Q, D), the answer last."""
        ...

    def item_vectors(self) -> Tensor:
        """Vectors of all items, (N, D) float32."""
        ...


@dataclass(frozen=True, slots=True)
class Ranking:
    """The best items of U users, best first."""

    ids: Tensor
    """Internal ids, (U, k) int64; -1 where no item was left."""
    scores: Tensor
    """(U, k) float32: inner products, or training events of the item where the list is popular."""
    is_popular: Tensor
    """(U,) bool: True where the fallback answered."""


def join(rankings: Sequence[Ranking], k: int) -> Ranking:
    """Stack rankings of k items; none give a ranking of no users."""
    return Ranking(
        ids=torch.cat([torch.zeros((0, k), dtype=torch.long), *(r.ids for r in rankings)]),
        scores=torch.cat([torch.zeros((0, k)), *(r.scores for r in rankings)]),
        is_popular=torch.cat([torch.zeros(0, dtype=torch.bool), *(r.is_popular for r in rankings)]),
    )


def arrange(ranking: Ranking, place: pa.Array, popular: tuple[Tensor, Tensor]) -> Ranking:
    """Put users in another order.

    Args:
        ranking: Of U users.
        place: Row of each user wanted, null where the ranking has none, (W,).
        popular: Scores and ids (k,) for those.

    Returns:
        The ranking of the W users.
    """
    missing = place.is_null().to_numpy(zero_copy_only=False)
    rows = place.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    fallback = Ranking(popular[1][None], popular[0][None], torch.tensor([True]))
    whole = join([ranking, fallback], len(popular[0]))
    at = torch.from_numpy(np.where(missing, len(ranking.ids), rows))
    return Ranking(whole.ids[at], whole.scores[at], whole.is_popular[at])


class Retriever:
    """A model with its items and an index over them.

    Args:
        model: In evaluation mode.
        catalogue: The items it was trained on.
        manifest: Of the data set it was trained on.
        context: How it reads histories.
        candidates: ``trained`` recommends items with a training event; ``all`` the others too,
            which the model knows only by their features.
        device: Where the model is.
    """

    def __init__(
        self,
        model: QueryModel,
        catalogue: Catalogue,
        manifest: Manifest,
        context: ContextConfig,
        *,
        candidates: Candidates = "trained",
        device: torch.device | str = "cpu",
    ) -> None:
        self.model = model
        self.manifest = manifest
        self.context = context
        self.device = torch.device(device)
        self.item_vectors = model.item_vectors().detach().to(self.device, torch.float32)
        self.recommendable = torch.zeros(catalogue.num_items, dtype=torch.bool)
        stop = FIRST_ID + catalogue.num_trained if candidates == "trained" else catalogue.num_items
        self.recommendable[FIRST_ID:stop] = True
        self.index: ItemIndex = BruteForceIndex(
            self.item_vectors, self.recommendable.to(self.device)
        )
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

    @torch.inference_mode()
    def queries(
        self, bucket: Histories, rows: Tensor, *, as_of: int | None = None, batch_size: int = 256
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Read histories and answer, batch by batch, rows of like length together.

        Args:
            bucket: The users.
            rows: Which of them, (R,) int64.
            as_of: Moment of scoring, seconds since 1970; events at or after it are not seen.
                None answers right after each user's last event.
            batch_size: B.

        Yields:
            Rows of the bucket (B,), the answering query vectors (B, D), and the items seen (B, L)
            padded with ``PAD``.
        """
        if not len(rows):
            return
        batches = history_batches(
            bucket, self.manifest, self.context, rows=rows, as_of=as_of, batch_size=batch_size
        )
        for row, context, seen in batches:
            heads = self.model.queries(context.to(self.device), self.item_vectors)
            answer = next(reversed(heads.values()))
            yield row, answer[:, 0].float(), seen

    @torch.inference_mode()
    def rank(
        self,
        bucket: Histories,
        k: int,
        *,
        rows: Tensor | None = None,
        as_of: int | None = None,
        filter_seen: bool = True,
        allow: Tensor | None = None,
        batch_size: int = 256,
    ) -> Ranking:
        """Find the best items of users of one bucket.

        Args:
            bucket: The users.
            k: Items a user, at least 1.
            rows: Which users, (U,) int64, none twice; None for all.
            as_of: Moment of scoring, seconds since 1970; see ``queries``.
            filter_seen: Never return an item of the visible history.
            allow: Items that may be returned, (N,) bool; None for all.
            batch_size: Users read at once.

        Returns:
            The ranking, a row a user in the order of ``rows``.

        Raises:
            ValueError: If k is below 1, or ``as_of`` is given to a model without times.
        """
        if k < 1:
            raise ValueError(f"k ({k}) must be at least 1.")
        self.check_moment(as_of)
        rows = torch.arange(bucket.num_users) if rows is None else rows
        answerable = self.answerable(bucket, rows, as_of=as_of)
        ids = torch.full((len(rows), k), NONE_ID)
        scores = torch.full((len(rows), k), NONE_SCORE)
        place = torch.zeros(bucket.num_users, dtype=torch.long)
        place[rows] = torch.arange(len(rows))
        allowed = None if allow is None else allow.to(self.device)
        for row, query, seen in self.queries(
            bucket, rows[answerable], as_of=as_of, batch_size=batch_size
        ):
            exclude = seen.to(self.device) if filter_seen else None
            found, best = self.index.search(query, k, exclude=exclude, allow=allowed)
            at = place[row]
            scores[at], ids[at] = found.cpu(), best.cpu()
        scores[~answerable], ids[~answerable] = self.popular(k, allow)
        return Ranking(ids, scores, ~answerable)
