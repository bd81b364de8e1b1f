"""The model, top to bottom: embed → encode → reason → answer → rank. Read this file first.

A user's history is read once, causally (the prefix). Every position of it already answers: that is
the *prefix head*, a SASRec-class model. Any number of requests then hang their tails on the prefix:
preference anchors, two base tokens (user, situation) and K latent reasoning steps of M tokens, each
of which sees the history before the request's cut and the request's own earlier blocks. Step k's
output is read as a query vector r_k; the last one is the model's answer. Scores are inner products
with item vectors, so that any maximum-inner-product index can serve them. The ranking stage reads
the same prefix and the same tail, and adds the candidates as one more reasoning block.

```
                    ┌─ prefix head: a query at every position
history ─ encoder ──┤
                    └─ keys and values ─► reasoner: B_0 → B_1 → … → B_K ─► ranker: C_0 → C_1 → …
anchors, user, situation ───────────────►     │      │           │           ▲      │      │
                                             r_0    r_1   …     r_K     candidates     logits
                                                           · z_item → scores
```
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.batch import CandidateSet, ContextBatch
from recsys.data.dataset import Catalogue
from recsys.model.backbone_hf import TransformersEncoder
from recsys.model.config import BackboneConfig, RecommenderConfig
from recsys.model.encoder import Encoder, PrefixState, state_at
from recsys.model.ranker import Ranker, RankOutput
from recsys.model.reasoner import Reasoner
from recsys.model.tokens import AnchorTokens, HistoryTokens, ItemEncoder, RequestTokens
from recsys.nn.tail import Tail
from recsys.types import PAD


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
class BaseBlock:
    """The tail's first block: preference anchors, then the user and the situation token."""

    tokens: Tensor
    """(B, Q, A + M, D)."""
    position: Tensor
    """(B, Q, A + M) int64."""
    valid: Tensor | None
    """False for padded anchors, (B, Q, A + M); None where there are none."""
    num_anchors: int
    """A: tokens at the front that are read but do not answer."""

    def after(self, state: Tensor) -> Tensor:
        """Its tokens, with the prefix's last state added to those that answer."""
        shown = self.tokens.clone() if self.num_anchors else self.tokens
        if not self.num_anchors:
            return shown + state[:, :, None]
        shown[:, :, self.num_anchors :] += state[:, :, None]
        return shown


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """Everything the heads and the losses read."""

    batch: ContextBatch
    items: ItemVectors
    prefix_state: PrefixState
    prefix: Tensor
    """Query of the prefix head at every history position, (B, T, D)."""
    steps: tuple[Tensor, ...] = ()
    """Queries r_0 … r_K of every request, (B, Q, D) each; empty where no requests were reasoned."""
    latents: tuple[Tensor, ...] = ()
    """Blocks B_0 … B_K, (B, Q, M, D) each."""
    base: BaseBlock | None = None
    tail: Tail | None = None
    """Of the reasoner: the base block and every step."""


class OnePiece(nn.Module):
    """Retrieval and ranking with latent reasoning over a shared prefix.

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
        self.encoder = (
            Encoder(config.encoder, has_time=config.data.has_time)
            if config.backbone.is_compact
            else TransformersEncoder(config.backbone, config.encoder.width)
        )
        has_reasoner = config.reasoner.decoder != "none"
        has_ranker = config.ranker.decoder != "none"
        has_tail = has_reasoner or has_ranker
        self.request_tokens = (
            RequestTokens(config.encoder, config.data, catalogue) if has_tail else None
        )
        has_anchors = has_tail and config.data.anchor_lengths
        self.anchor_tokens = AnchorTokens(config.encoder, config.data) if has_anchors else None
        self.reasoner = Reasoner(config.reasoner, config.encoder) if has_reasoner else None
        tasks = config.data.num_ranking_tasks
        self.ranker = Ranker(config.ranker, config.encoder, tasks) if has_ranker else None
        self.answer_norm = nn.LayerNorm(config.encoder.width)
        self.latent_norm = nn.LayerNorm(config.encoder.width) if has_reasoner else None
        self.answer_head = self.heads[-1]
        """The head that recommends; training may choose another by validation."""
        coarse = config.data.num_coarse
        self.coarse_head = nn.Linear(config.encoder.width, coarse) if coarse else None

    @property
    def saved_backbone(self) -> BackboneConfig:
        """The backbone as a saved model must describe it."""
        if isinstance(self.encoder, TransformersEncoder):
            return self.encoder.saved_config
        return self.config.backbone

    @property
    def can_rank(self) -> bool:
        """Whether the model has a ranking stage."""
        return self.ranker is not None

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads, the deepest last: ``prefix``, ``step0`` … ``stepK``."""
        steps = 0 if self.reasoner is None else self.config.reasoner.num_steps + 1
        prefix = () if self.config.encoder.attention == "full" else ("prefix",)
        return (*prefix, *(f"step{k}" for k in range(steps)))

    def independent_parts(self) -> tuple[list[nn.Parameter], ...]:
        """Parameters in parts whose gradients have nothing to do with each other.

        What isolated stages train is a part of its own; everything else is one.
        """
        base = ("request_tokens.", "anchor_tokens.")
        parts: list[tuple[str, ...]] = []
        if self.reasoner is not None and self.config.reasoner.isolated:
            parts.append(("reasoner.", "latent_norm.", "coarse_head.", *base))
        if self.ranker is not None and self.config.ranker.isolated:
            parts.append(("ranker.", *(() if self.reasoner is not None else base)))
        named = list(self.named_parameters())
        rest = [p for name, p in named if not name.startswith(sum(parts, ()))]
        return (rest, *([p for name, p in named if name.startswith(part)] for part in parts))

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
        return self.encoder.prefix(self._history(batch, items), batch.history)

    def _history(self, batch: ContextBatch, items: ItemVectors) -> Tensor:
        return self.history_tokens(batch.history, items.take(batch.history.item))  # type: ignore[no-any-return]

    def base_block(self, batch: ContextBatch, items: ItemVectors) -> BaseBlock:
        """Embed what a request brings: anchors, user, situation."""
        assert self.request_tokens is not None
        cut, owner = batch.requests.cut, self.reasoner or self.ranker
        assert owner is not None
        isolated = owner.config.isolated
        base = self.request_tokens(batch)
        at = cut[..., None] + torch.arange(base.shape[2], device=base.device)
        place = self.history_tokens.position(at.clamp(max=self.config.encoder.max_history))
        if isolated and isinstance(place, Tensor):
            place = place.detach()
        base = base + place
        if self.anchor_tokens is None:
            return BaseBlock(base, at, None, 0)
        anchors = batch.requests.anchor_item
        if anchors is None:
            lengths = self.config.data.anchor_lengths
            raise ValueError(
                f"The model reads preference anchors in groups of {lengths}, and the batch has "
                "none: assemble it with the anchors of its data set or model folder."
            )
        vectors = items.take(anchors)
        tokens, real, inside = self.anchor_tokens(
            anchors, vectors.detach() if isolated else vectors
        )
        return BaseBlock(
            tokens=torch.cat((tokens, base), dim=2),
            position=torch.cat((cut[..., None] + inside, at), dim=2),
            valid=torch.cat((real, torch.ones_like(at, dtype=torch.bool)), dim=2),
            num_anchors=tokens.shape[2],
        )

    def reason(
        self, batch: ContextBatch, prefix: PrefixState, items: ItemVectors
    ) -> tuple[BaseBlock, tuple[Tensor, ...], Tail]:
        """Run the requests' tails over the prefix.

        Returns:
            The base block, B_0 … B_K (B, Q, M, D) each, and the tail that holds them.
        """
        assert self.reasoner is not None
        config, cut = self.config.reasoner, batch.requests.cut
        base = self.base_block(batch, items)
        prefix = prefix.detach() if config.isolated else prefix
        x = base.tokens
        if config.decoder == "own":
            tail = self.encoder.open_tail(prefix, batch.requests, self.reasoner.layers)
            x = base.after(state_at(prefix.hidden, cut))
        else:
            tail = self.encoder.open_tail(prefix, batch.requests)
        first = tail.append(x, base.position, base.valid, skip=base.num_anchors)
        norm = items.vectors.norm(dim=-1).mean()
        return base, self.reasoner(first, tail, cut, norm), tail

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
        if self.config.encoder.attention == "full":
            return self._forward_in_full(batch, items)
        prefix = self.encode(batch, items)
        queries = self._query(self.answer_norm(prefix.hidden))
        if self.reasoner is None or not reason:
            return ModelOutput(batch, items, prefix, queries)
        base, blocks, tail = self.reason(batch, prefix, items)
        steps = tuple(self.answer(block) for block in blocks)
        return ModelOutput(batch, items, prefix, queries, steps, blocks, base, tail)

    def _forward_in_full(self, batch: ContextBatch, items: ItemVectors) -> ModelOutput:
        """OnePiece's own form: one request a row, and no prefix head."""
        assert self.reasoner is not None
        if batch.requests.cut.shape[1] != 1:
            raise ValueError(
                f"encoder.attention 'full' reads one request a row, not "
                f"{batch.requests.cut.shape[1]}: set context.requests_per_row to 1."
            )
        base = self.base_block(batch, items)
        prefix = self._read_in_full(batch, items, (base,))
        tail = self.encoder.open_tail(prefix, batch.requests)
        M = base.tokens.shape[2] - base.num_anchors
        norm = items.vectors.norm(dim=-1).mean()
        blocks = self.reasoner(prefix.hidden[:, None, -M:], tail, batch.requests.cut, norm)
        steps = tuple(self.answer(block) for block in blocks)
        nothing = prefix.hidden[:, : batch.history.item.shape[1]] * 0
        return ModelOutput(batch, items, prefix, nothing, steps, blocks, base, tail)

    def _read_in_full(
        self, batch: ContextBatch, items: ItemVectors, blocks: tuple[BaseBlock, ...]
    ) -> PrefixState:
        """Read the history before the cut and a request's blocks as one sequence."""
        x = self._history(batch, items)
        place = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        seen = [place < batch.requests.cut]
        for block in blocks:
            every = torch.ones_like(block.position, dtype=torch.bool)
            seen.append((every if block.valid is None else block.valid)[:, 0])
        assert isinstance(self.encoder, Encoder)
        return self.encoder.full(
            torch.cat((x, *(block.tokens[:, 0] for block in blocks)), dim=1),
            torch.cat((place, *(block.position[:, 0] for block in blocks)), dim=1),
            torch.cat(seen, dim=1),
            batch.history,
        )

    def query(self, output: ModelOutput, head: str) -> Tensor:
        """Query vectors of one head for every request, (B, Q, D); zero where nothing was seen."""
        if head != "prefix":
            return output.steps[int(head.removeprefix("step"))]
        return state_at(output.prefix, output.batch.requests.cut)

    def rank(self, output: ModelOutput, candidates: CandidateSet) -> RankOutput:
        """Rank candidates of every request on what was read already.

        Args:
            output: Of this model, its requests reasoned where it has a reasoner.
            candidates: (B, Q, G, C), among the items that were looked up.

        Returns:
            Logits by task.
        """
        assert self.ranker is not None
        config, shape = self.config.ranker, candidates.item.shape
        if not config.candidates_visible:  # a group of one sees no other
            candidates = candidates.view(*shape[:2], -1, 1)
        vectors = output.items.take(candidates.item)
        query = self.query(output, self.heads[-1])
        if config.isolated:
            vectors, query = vectors.detach(), query.detach()
        score = (vectors * query[:, :, None, None]).sum(dim=-1)
        tokens = self.ranker.tokens(candidates, vectors, query)
        if self.config.encoder.attention == "full":
            found = self._rank_in_full(output, candidates, tokens, score)
            return found.view(shape)
        tail, start = self._ranking_tail(output)
        groups = tail.fork(candidates.item.shape[2])
        at = start.repeat_interleave(tokens.shape[2], dim=1)[..., None]
        valid = (candidates.item != PAD).flatten(1, 2)
        first = groups.append(tokens.flatten(1, 2), at.expand(valid.shape), valid)
        found = self.ranker(candidates, first, groups, start, score)
        return found.view(shape)  # type: ignore[no-any-return]

    def _ranking_tail(self, output: ModelOutput) -> tuple[Tail, Tensor]:
        """What candidates see beside their group, and the position (B, Q) they all have."""
        assert self.ranker is not None
        config, batch = self.config.ranker, output.batch
        base = output.base or self.base_block(batch, output.items)
        blocks = output.latents if config.read_steps else ()
        M = base.tokens.shape[2] - base.num_anchors
        start = batch.requests.cut + max(1, len(blocks)) * M
        shared = config.decoder == self.config.reasoner.decoder == "shared"
        if shared and config.read_steps and not config.isolated:
            assert output.tail is not None
            return output.tail, start
        prefix, tokens = output.prefix_state, base.tokens
        if config.isolated:
            prefix = prefix.detach()
            # Without a reasoner nobody else trains what a request brings.
            tokens = tokens.detach() if self.reasoner is not None else tokens
            blocks = tuple(block.detach() for block in blocks)
        layers = self.ranker.layers if config.decoder == "own" else None
        tail = self.encoder.open_tail(prefix, batch.requests, layers)
        tail.append(tokens, base.position, base.valid, skip=tokens.shape[2])
        for k, block in enumerate(blocks):
            tail.append(block, base.position[:, :, -M:] + k * M, skip=M)
        return tail, start

    def _rank_in_full(
        self, output: ModelOutput, candidates: CandidateSet, tokens: Tensor, score: Tensor
    ) -> RankOutput:
        """OnePiece's own form: every group reads the whole context anew, and is read by it."""
        assert self.ranker is not None
        assert output.base is not None
        batch, found = output.batch, []
        M = output.base.tokens.shape[2] - output.base.num_anchors
        start = batch.requests.cut + M
        for g, block in enumerate(tokens.unbind(dim=2)):
            group = candidates.group(g)
            at = start[..., None].expand(block.shape[:3])
            shown = BaseBlock(block, at, group.item[:, :, 0] != PAD, 0)
            prefix = self._read_in_full(batch, output.items, (output.base, shown))
            tail = self.encoder.open_tail(prefix, batch.requests)
            first = prefix.hidden[:, None, -block.shape[2] :]
            found.append(self.ranker(group, first, tail, start, score[:, :, g : g + 1]))
        return RankOutput.together(found)

    @torch.inference_mode()
    def item_vectors(self) -> Tensor:
        """Vectors of the whole catalogue, (N, D) float32; rows 0 and 1 are never recommended."""
        return self.embed_items().vectors.float()

    @torch.inference_mode()
    def read(self, context: ContextBatch, items: Tensor | None = None) -> ModelOutput:
        """Read requests once, for both stages.

        Args:
            context: Requests to answer.
            items: What ``item_vectors`` returned, to save looking it up again.

        Returns:
            What ``query_of`` and ``rank_of`` take.
        """
        return self(context, self.embed_items() if items is None else ItemVectors(items))  # type: ignore[no-any-return]

    @torch.inference_mode()
    def query_of(self, state: ModelOutput) -> Tensor:
        """The answering query vectors, (B, Q, D)."""
        return self.query(state, self.answer_head)

    @torch.inference_mode()
    def rank_of(self, state: ModelOutput, candidates: CandidateSet) -> Tensor:
        """Logits of candidates by task, weakest first, (B, Q, G, C, S) float32."""
        return self.rank(state, candidates).logits.float()

    @torch.inference_mode()
    def answers(self, context: ContextBatch, items: Tensor | None = None) -> Tensor:
        """The answering query vectors alone, (B, Q, D), at the least cost."""
        if self.answer_head != "prefix":
            return self.query_of(self.read(context, items))
        looked_up = self.embed_items() if items is None else ItemVectors(items)
        cut = context.requests.cut
        state = self.encoder.prefix_at(self._history(context, looked_up), context.history, cut)
        return self._query(self.answer_norm(state)) * (cut > 0)[..., None]

    @torch.inference_mode()
    def queries(self, context: ContextBatch, items: Tensor | None = None) -> dict[str, Tensor]:
        """Query vectors of every head, for evaluation.

        Args:
            context: Requests to answer.
            items: What ``item_vectors`` returned, to save looking it up again.

        Returns:
            ``prefix``, ``step0`` … ``stepK``, (B, Q, D) each, with ``answer_head`` moved to the
            end. A request without history has a zero ``prefix`` query.
        """
        if self.heads == ("prefix",):
            return {"prefix": self.answers(context, items)}
        output = self.read(context, items)
        found = {head: self.query(output, head) for head in self.heads}
        answer = found.pop(self.answer_head)
        return {**found, self.answer_head: answer}
