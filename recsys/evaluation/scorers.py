"""The scorer of dot-product models: one matrix product a block serves all heads."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.batch import ContextBatch, EvaluationBatch
from recsys.evaluation.translate import Translation


class QueryModel(Protocol):
    """A model whose scores are inner products of queries and item vectors."""

    def queries(self, context: ContextBatch, items: Tensor | None = None) -> dict[str, Tensor]:
        """Head → (B, Q, D), the answer last."""
        ...

    def item_vectors(self) -> Tensor:
        """(N, D)."""
        ...


class ModelScorer:
    """Scores by inner products; item vectors are computed once, queries once a batch.

    Args:
        model: In evaluation mode.
        name: What reports call it.
        heads: Which of the model's heads to test, the answer last; None = all.
        device: Where the model is and scores are computed.
        translation: Where the requests are of other data than the model: items that it does not
            know then score -inf.

    Raises:
        ValueError: If the model is in training mode.
    """

    def __init__(
        self,
        model: QueryModel,
        *,
        name: str = "model",
        heads: tuple[str, ...] | None = None,
        device: torch.device | str = "cpu",
        translation: Translation | None = None,
    ) -> None:
        if getattr(model, "training", False):
            raise ValueError(f"Model {name!r} is in training mode: call its eval() first.")
        self.name = name
        self._model = model
        self._device = torch.device(device)
        self._known = model.item_vectors().to(self._device, torch.float32).contiguous()
        self._items, self._unknown = self._known, None
        self._translation = translation
        self.is_unknown: NDArray[np.bool_] | None = None
        """Items that the model does not know, (N,); None where it knows all."""
        if translation is not None:
            self.is_unknown = translation.is_unknown.numpy()
            self._items = self._known[translation.items.to(self._device)]
            self._unknown = translation.is_unknown.to(self._device)
        self._heads = heads
        self._batch: EvaluationBatch | None = None
        self._queries = torch.empty(0)
        self._buffer = torch.empty(0)

    @property
    def heads(self) -> tuple[str, ...]:
        """The model's heads, the answer last; known once a batch was scored, or as given."""
        return self._heads or ()

    def score(self, batch: EvaluationBatch, start: int, stop: int) -> dict[str, Tensor]:
        """Score a block of items for all heads; see ``Scorer``.

        Args:
            batch: B requests, one a row.
            start: First internal item id.
            stop: One past the last.

        Returns:
            Head → (B, stop - start) float32, good until the next call: the memory is used again.

        Raises:
            ValueError: If the model has no such head, or answers several requests a row.
        """
        queries = self._read(batch)
        rows, width = len(queries), stop - start
        with torch.inference_mode():
            if self._buffer.numel() < rows * width:
                self._buffer = queries.new_empty(rows * width)
            scores = self._buffer[: rows * width].view(rows, width)
            torch.mm(queries, self._items[start:stop].T, out=scores)
            if self._unknown is not None:
                scores.masked_fill_(self._unknown[start:stop], -torch.inf)
        return self._split(scores.view(len(self.heads), -1, stop - start))

    def score_items(self, batch: EvaluationBatch, items: Tensor) -> dict[str, Tensor]:
        """Score one item a request; see ``TargetScorer``.

        Args:
            batch: B requests, one a row.
            items: Internal ids, (B,) int64.

        Returns:
            Head → (B,) float32.

        Raises:
            ValueError: If the model has no such head, or answers several requests a row.
        """
        # The diagonal of a product, not a sum of products: its bits are those of ``score``.
        items = items.to(self._device)
        scores = self._read(batch) @ self._items[items].T
        if self._unknown is not None:
            scores.masked_fill_(self._unknown[items], -torch.inf)
        square = scores.view(len(self.heads), len(items), len(items))
        return self._split(square.diagonal(dim1=1, dim2=2))

    def _split(self, stacked: Tensor) -> dict[str, Tensor]:
        return {head: stacked[i] for i, head in enumerate(self.heads)}

    def _read(self, batch: EvaluationBatch) -> Tensor:
        """Queries of every head, (heads * B, D), kept for the blocks of one batch."""
        if self._batch is not batch:
            context = batch.context
            if self._translation is not None:
                context = self._translation(context)
            with torch.inference_mode():
                found = self._model.queries(context.to(self._device), self._known)
            if self._heads is None:
                self._heads = tuple(found)
            missing = [head for head in self._heads if head not in found]
            if missing:
                raise ValueError(
                    f"Model {self.name!r} has no heads {missing}; it has {list(found)}."
                )
            parts = [found[head] for head in self._heads]
            if any(part.dim() != 3 or part.shape[1] != 1 for part in parts):
                raise ValueError(
                    f"Model {self.name!r} must answer one request a row, (B, 1, D), not "
                    f"{[tuple(part.shape) for part in parts]}."
                )
            self._queries = torch.cat([part[:, 0].float() for part in parts]).contiguous()
            self._batch = batch
        return self._queries
