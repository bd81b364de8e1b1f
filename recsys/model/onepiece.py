"""The model, top to bottom: embed → encode → reason → answer. Read this file first.

A user's history is read once, causally (the prefix). Every position of it already answers: that is
the *prefix head*, a SASRec-class model. Any number of requests then hang their tails on the prefix:
two base tokens (user, situation) and K latent reasoning steps of M tokens, each of which sees the
history before the request's cut and the request's own earlier blocks. Step k's output is read as a
query vector r_k; the last one is the model's answer. Scores are inner products with item vectors,
so that any maximum-inner-product index can serve them.

```
                    ┌─ prefix head: a query at every position
history ─ encoder ──┤
                    └─ cached keys and values ─► reasoner: B_0 → B_1 → … → B_K
user, situation ───────────────────────────────►     │      │             │
                                                      r_0    r_1    …      r_K · z_item → scores
```
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.batch import ContextBatch
from recsys.data.dataset import Catalogue
from recsys.model.config import RecommenderConfig
from recsys.model.encoder import Encoder, PrefixState
from recsys.model.reasoner import Reasoner, state_at
from recsys.model.tokens import HistoryTokens, ItemEncoder, RequestTokens


@dataclass(frozen=True, slots=True)
class ItemVectors:
    """Item vectors, looked up once a step: of the whole catalogue or of the step's unique ids."""

    vectors: Tensor
    """(U, D) float32."""
    ids: Tensor | None = None
    """Sorted internal ids of the rows, (U,) int64; None where row i is item i."""

    def rows(self, ids: Tensor) -> Tensor:
        """Row of each internal id, int64 of the same shape. The ids must be among ``self.ids``."""
        return ids if self.ids is None else torch.searchsorted(self.ids, ids)

    def take(self, ids: Tensor) -> Tensor:
        """Vectors of internal ids of any shape, (..., D)."""
        return F.embedding(self.rows(ids), self.vectors)


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """Everything the heads and the losses read."""

    prefix: Tensor
    """Query of the prefix head at every history position, (B, T, D)."""
    steps: tuple[Tensor, ...]
    """Queries r_0 … r_K of every request, (B, Q, D) each; empty where no requests were reasoned."""
    latents: tuple[Tensor, ...]
    """Blocks B_0 … B_K, (B, Q, M, D) each."""
    items: ItemVectors


class OnePiece(nn.Module):
    """Retrieval with latent reasoning over a shared prefix.

    Args:
        config: Sizes and options.
        catalogue: The items; their features become constants of the model.

    Source:
        Dai et al., "OnePiece", 2509.18091, for block-wise reasoning and progressive heads. The
        shared prefix, the dense prefix head and the own decoder are ours.
    """

    def __init__(self, config: RecommenderConfig, catalogue: Catalogue) -> None:
        super().__init__()
        if catalogue.num_items != config.data.num_items:
            raise ValueError(
                f"The catalogue has {catalogue.num_items} rows, config {config.data.num_items}; "
                "they are of different data sets."
            )
        self.config = config
        self.item_encoder = ItemEncoder(config.encoder, config.data, catalogue)
        self.history_tokens = HistoryTokens(config.encoder, config.data)
        self.encoder = Encoder(config.encoder, has_time=config.data.has_time)
        has_reasoner = config.reasoner.decoder != "none"
        self.request_tokens = RequestTokens(config.encoder, config.data) if has_reasoner else None
        self.reasoner = Reasoner(config.reasoner, config.encoder) if has_reasoner else None
        self.answer_norm = nn.LayerNorm(config.encoder.width)
        self.latent_norm = nn.LayerNorm(config.encoder.width) if has_reasoner else None
        self.answer_head = self.heads[-1]
        """The head that recommends; training may choose another by validation."""
        coarse = config.data.num_coarse
        self.coarse_head = nn.Linear(config.encoder.width, coarse) if coarse else None

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads, the deepest last: ``prefix``, ``step0`` … ``stepK``."""
        steps = 0 if self.reasoner is None else self.config.reasoner.num_steps + 1
        return ("prefix", *(f"step{k}" for k in range(steps)))

    def independent_parts(self) -> tuple[list[nn.Parameter], ...]:
        """Parameters in parts whose gradients have nothing to do with each other.

        With isolated steps these are what the steps train and the rest; else all are one part.
        """
        if self.reasoner is None or not self.config.reasoner.isolated:
            return (list(self.parameters()),)
        tail = ("reasoner.", "request_tokens.", "latent_norm.", "coarse_head.")
        named = list(self.named_parameters())
        return (
            [p for name, p in named if not name.startswith(tail)],
            [p for name, p in named if name.startswith(tail)],
        )

    def embed_items(self, ids: Tensor | None = None) -> ItemVectors:
        """Look item vectors up: the step's one lookup.

        Args:
            ids: Sorted unique internal ids, (U,) int64; None for the whole catalogue.

        Returns:
            Their vectors.
        """
        return ItemVectors(self.item_encoder(ids), ids)

    def encode(self, batch: ContextBatch, items: ItemVectors) -> PrefixState:
        """Read the histories of a batch once."""
        tokens = self.history_tokens(batch.history, items.take(batch.history.item))
        return self.encoder.prefix(tokens, batch.history)

    def reason(
        self, batch: ContextBatch, prefix: PrefixState, items: ItemVectors
    ) -> tuple[Tensor, ...]:
        """Run the requests' tails over the prefix: B_0 … B_K, (B, Q, M, D) each.

        Empty where the model has no reasoner.
        """
        if self.reasoner is None or self.request_tokens is None:
            return ()
        base = self.request_tokens(batch)
        at = batch.requests.cut[..., None] + torch.arange(base.shape[2], device=base.device)
        last = self.config.encoder.max_history
        position = self.history_tokens.position(at.clamp(max=last))
        if self.config.reasoner.isolated and isinstance(position, Tensor):
            position = position.detach()
        base = base + position
        norm = items.vectors.norm(dim=-1).mean()
        return self.reasoner(base, prefix, batch.requests, self.encoder, norm)  # type: ignore[no-any-return]

    def answer(self, latents: Tensor) -> Tensor:
        """Read a block (..., M, D) as one query vector (..., D)."""
        assert self.latent_norm is not None
        return self._query(self.latent_norm(latents).mean(dim=-2))

    def _query(self, state: Tensor) -> Tensor:
        encoder = self.config.encoder
        if encoder.similarity == "cosine":
            return F.normalize(state, dim=-1) / encoder.temperature
        return state

    def forward(
        self, batch: ContextBatch, items: ItemVectors | None = None, *, reason: bool = True
    ) -> ModelOutput:
        """Embed, encode, reason, answer.

        Args:
            batch: What to read.
            items: The step's item vectors; None looks the whole catalogue up.
            reason: Whether to run the requests' tails.

        Returns:
            Queries of the prefix head and of every step.
        """
        items = self.embed_items() if items is None else items
        prefix = self.encode(batch, items)
        blocks = self.reason(batch, prefix, items) if reason else ()
        return ModelOutput(
            prefix=self._query(self.answer_norm(prefix.hidden)),
            steps=tuple(self.answer(block) for block in blocks),
            latents=blocks,
            items=items,
        )

    @torch.inference_mode()
    def item_vectors(self) -> Tensor:
        """Vectors of the whole catalogue, (N, D) float32; rows 0 and 1 are never recommended."""
        return self.embed_items().vectors.float()

    @torch.inference_mode()
    def queries(self, context: ContextBatch, items: Tensor | None = None) -> dict[str, Tensor]:
        """Query vectors of every head, for scoring.

        Args:
            context: Requests to answer.
            items: What ``item_vectors`` returned, to save looking it up again.

        Returns:
            ``prefix``, ``step0`` … ``stepK``, (B, Q, D) each, with ``answer_head`` moved to the
            end. A request without history has a zero ``prefix`` query.
        """
        looked_up = self.embed_items() if items is None else ItemVectors(items)
        prefix = self.encode(context, looked_up)
        blocks = self.reason(context, prefix, looked_up)
        at_cut = state_at(self._query(self.answer_norm(prefix.hidden)), context.requests.cut)
        steps = {f"step{k}": self.answer(block) for k, block in enumerate(blocks)}
        found = {"prefix": at_cut, **steps}
        answer = found.pop(self.answer_head)
        return {**found, self.answer_head: answer}
