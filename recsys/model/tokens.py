"""What the model reads: a batch's items, events and moments as token embeddings."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from recsys.batch import CandidateSet, ContextBatch, History
from recsys.data.dataset import Catalogue
from recsys.model.config import DataSizes, EncoderConfig
from recsys.nn.dropout import Dropout
from recsys.nn.embedding import FeatureEncoder, table_name, take_lists
from recsys.types import FIRST_ID, NUM_GAPS, PAD, UNKNOWN

NUM_BASE_TOKENS = 2
"""Tokens of a request's base block: the user and the situation."""

NUM_POSITIONS = 64
"""Places in a shown list that are told apart; 0 = unknown, the last holds all later ones."""


class ItemEncoder(nn.Module):
    """φ_item and its projection: one vector an item, the same for reading and for answering.

    The declared features are constants of the catalogue: they are saved with it, not with the
    weights. Items without training events share the id row ``UNKNOWN`` and differ by features.
    """

    def __init__(self, config: EncoderConfig, data: DataSizes, catalogue: Catalogue) -> None:
        super().__init__()
        self.id_dropout = config.id_dropout if data.item_features else 0.0
        self.cosine = config.similarity == "cosine"
        self.encoder = FeatureEncoder(
            config.width,
            data.item_features,
            num_ids=data.num_id_rows,
            feature_width=config.feature_width,
            std=config.init_std,
        )
        rows = torch.arange(data.num_items)
        known = rows < data.num_id_rows
        self._constant("id_row", torch.where(known, rows, UNKNOWN))
        for name, value in catalogue.values.items():
            self._constant(f"value_{table_name(name)}", value)
        for name, column in catalogue.lists.items():
            self._constant(f"codes_{table_name(name)}", column.values)
            self._constant(f"offsets_{table_name(name)}", column.offsets)
        self.value_names, self.list_names = tuple(catalogue.values), tuple(catalogue.lists)

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def forward(self, ids: Tensor | None = None) -> Tensor:
        """Vectors of some items, or of the whole catalogue.

        Args:
            ids: Internal ids, (U,) int64; None for all.

        Returns:
            (U, D) float32.
        """
        id_row: Tensor = self.get_buffer("id_row")
        rows = torch.arange(len(id_row), device=id_row.device) if ids is None else ids
        shown = id_row[rows]
        if self.training and self.id_dropout:
            hidden = torch.rand(shown.shape, device=shown.device) < self.id_dropout
            shown = torch.where(hidden & (shown >= FIRST_ID), UNKNOWN, shown)
        values = {n: self.get_buffer(f"value_{table_name(n)}")[rows] for n in self.value_names}
        lists = {
            name: take_lists(
                self.get_buffer(f"codes_{table_name(name)}"),
                self.get_buffer(f"offsets_{table_name(name)}"),
                rows,
            )
            for name in self.list_names
        }
        vectors: Tensor = self.encoder(shown, values, lists)
        return nn.functional.normalize(vectors, dim=-1) if self.cosine else vectors


class HistoryTokens(nn.Module):
    """Events as tokens: item + behavior + position + time gap + block + declared event features."""

    def __init__(self, config: EncoderConfig, data: DataSizes) -> None:
        super().__init__()
        width, std = config.width, config.init_std
        self.scale = width**0.5 if config.similarity == "dot" else 1.0
        # One more position than the history holds: a request that has read all of it stands there.
        self.sizes = {
            "position": config.max_history + 1 if config.positions != "rotary" else 0,
            "behavior": data.num_behaviors if config.use_behavior else 0,
            "gap": NUM_GAPS if config.use_gap and data.has_time else 0,
            "block": config.max_blocks + 1 if config.max_blocks else 0,
        }
        self.tables = nn.ModuleDict(
            {name: nn.Embedding(rows, width) for name, rows in self.sizes.items() if rows}
        )
        self.features = FeatureEncoder(
            width, data.event_features, feature_width=config.feature_width, std=std
        )
        for table in self.tables.parameters():
            nn.init.normal_(table, std=std)
        self.dropout = Dropout(config.dropout)

    def forward(self, history: History, item_vectors: Tensor) -> Tensor:
        """Embed the prefix.

        Args:
            history: The events.
            item_vectors: Vector of each event's item, (B, T, D).

        Returns:
            (B, T, D); padding holds whatever its position gives and is never attended to.
        """
        x = item_vectors * self.scale
        if "position" in self.tables:
            x = x + self.position(torch.arange(x.shape[1], device=x.device))
        for name in ("behavior", "gap", "block"):
            if name in self.tables:
                x = x + self.tables[name](getattr(history, name).clamp(max=self.sizes[name] - 1))
        if self.features.features:
            flat = {name: value.flatten() for name, value in history.features.items()}
            x = x + self.features(None, flat).view_as(x)
        return self.dropout(x)  # type: ignore[no-any-return]

    def position(self, at: Tensor) -> Tensor | float:
        """Embedding of positions, (..., D); 0 where positions are only relative."""
        return self.tables["position"](at) if "position" in self.tables else 0.0


class RequestTokens(nn.Module):
    """A request's base block: the user token and the situation token."""

    def __init__(self, config: EncoderConfig, data: DataSizes, catalogue: Catalogue) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(NUM_BASE_TOKENS, config.width) * config.init_std)
        width, std = config.feature_width, config.init_std
        self.user = FeatureEncoder(config.width, data.user_features, feature_width=width, std=std)
        self.texts = tuple(feature.name for feature in data.situation_texts)
        for name in self.texts:
            vectors = catalogue.event_texts[name]
            self.register_buffer(f"text_{table_name(name)}", vectors, persistent=False)
        texts = tuple(replace(f, name=f"{f.name}.text") for f in data.situation_texts)
        self.situation = FeatureEncoder(
            config.width, (*data.situation_features, *texts), feature_width=width, std=std
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, batch: ContextBatch) -> Tensor:
        """Embed the base block of every request, (B, Q, M, D), positions apart."""
        requests = batch.requests
        B, Q = requests.cut.shape
        tokens = self.token.expand(B, Q, -1, -1)
        user, situation = tokens.unbind(dim=2)
        if self.user.features:
            listed = {f.name for f in self.user.features if f.kind == "multi_hot"}
            values = {name: value for name, value in batch.user.items() if name not in listed}
            lists = {
                name: (value[value != PAD], (value != PAD).sum(dim=1))
                for name, value in batch.user.items()
                if name in listed
            }
            user = user + self.user(None, values, lists)[:, None, :]
        if self.situation.features:
            moment = dict(requests.situation)
            for name in self.texts:
                vectors = self.get_buffer(f"text_{table_name(name)}")
                moment[f"{name}.text"] = vectors[moment[name]]
            flat = {f.name: moment[f.name].flatten(0, 1) for f in self.situation.features}
            situation = situation + self.situation(None, flat).view(B, Q, -1)
        return self.dropout(torch.stack((user, situation), dim=2))  # type: ignore[no-any-return]


class AnchorTokens(nn.Module):
    """Preference anchors: each group between BOS and EOS, item + place in the group + group."""

    def __init__(self, config: EncoderConfig, data: DataSizes) -> None:
        super().__init__()
        self.lengths, width = data.anchor_lengths, config.width
        self.scale = width**0.5 if config.similarity == "dot" else 1.0
        self.ends = nn.Parameter(torch.randn(2, width) * config.init_std)
        self.place = nn.Embedding(max(self.lengths), width)
        self.group = nn.Embedding(len(self.lengths), width)
        for table in (self.place, self.group):
            nn.init.normal_(table.weight, std=config.init_std)
        self.dropout = Dropout(config.dropout)

    def forward(self, item: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embed the anchors of every request.

        Args:
            item: Internal ids, (B, Q, A) int64, group after group, ``PAD`` where one is short.
            vectors: Their item vectors, (B, Q, A, D).

        Returns:
            Tokens (B, Q, A + 2 G, D), which of them are real (B, Q, A + 2 G), and the place of
            each inside its group (A + 2 G,).
        """
        B, Q, _ = item.shape
        bos, eos = (end.expand(B, Q, 1, -1) for end in self.ends)
        shown = torch.ones(B, Q, 1, dtype=torch.bool, device=item.device)
        tokens, real, places = [], [], []
        lengths = list(self.lengths)
        parts = zip(torch.split(item, lengths, -1), torch.split(vectors, lengths, 2), strict=True)
        for number, (ids, found) in enumerate(parts):
            length = ids.shape[-1]
            group = torch.cat((bos, found * self.scale + self.place.weight[:length], eos), dim=2)
            tokens.append(group + self.group.weight[number])
            real.append(torch.cat((shown, ids != PAD, shown), dim=-1))
            places.append(torch.arange(length + 2, device=item.device))
        return self.dropout(torch.cat(tokens, 2)), torch.cat(real, -1), torch.cat(places)


class CandidateTokens(nn.Module):
    """Candidates of the ranking stage: their own projection of the item, and no position.

    How the item meets the retrieval's query, number by number, is part of the token: attention
    alone finds such products hard.

    The place in a list that was shown may be read in training, to explain away its effect; scoring
    leaves it at 0, which stands for no place at all.
    """

    def __init__(self, config: EncoderConfig, *, use_position: bool, use_match: bool) -> None:
        super().__init__()
        self.scale = config.width**0.5 if config.similarity == "dot" else 1.0
        self.project = nn.Linear(config.width, config.width)
        nn.init.eye_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.match = nn.Linear(config.width, config.width, bias=False) if use_match else None
        if self.match is not None:
            nn.init.zeros_(self.match.weight)
        self.position = nn.Embedding(NUM_POSITIONS, config.width) if use_position else None
        if self.position is not None:
            nn.init.zeros_(self.position.weight)
        self.dropout = Dropout(config.dropout)

    def forward(self, candidates: CandidateSet, vectors: Tensor, query: Tensor) -> Tensor:
        """Embed candidates.

        Args:
            candidates: Ids and places, (B, Q, G, C).
            vectors: Item vectors, (B, Q, G, C, D).
            query: The retrieval's query, (B, Q, D).

        Returns:
            (B, Q, G, C, D).
        """
        x = self.project(vectors * self.scale)
        if self.match is not None:
            x = x + self.match(vectors * query[:, :, None, None] * self.scale)
        if self.position is not None and candidates.position is not None:
            x = x + self.position(candidates.position.clamp(max=NUM_POSITIONS - 1))
        return self.dropout(x)  # type: ignore[no-any-return]
