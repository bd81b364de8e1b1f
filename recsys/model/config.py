"""What a model is made of: one frozen config a part, composed into ``RecommenderConfig``."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from recsys.schema import Feature, Manifest
from recsys.types import FIRST_BEHAVIOR, FIRST_ID


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """The backbone, and what its tokens are made of."""

    width: int = 64
    """D."""
    num_layers: int = 2
    num_heads: int = 2
    hidden: int = 0
    """Width inside a feed-forward layer; 0 means 8/3 of ``width``."""
    dropout: float = 0.2
    max_history: int = 200
    """History tokens a prefix holds; a training run takes its context's."""
    attention: Literal["causal", "full"] = "causal"
    """``full`` lets the history, anchors, situation and candidates of the one request of a row all
    see each other: OnePiece's own form, without prefix head; for ablations."""
    positions: Literal["learned", "rotary", "both"] = "both"
    relative_bias: bool = False
    """Add a learned bias by distance in positions and, where logs have times, in time."""
    use_behavior: bool = True
    use_gap: bool = True
    """Read the time since the event before; switched off for logs without times."""
    max_blocks: int = 0
    """Interaction blocks told apart, oldest first; 0 where the history is one block."""
    feature_width: int = 16
    """Width of a categorical or multi-hot feature's embedding."""
    id_dropout: float = 0.0
    """Share of item ids shown as unknown in training, so that new items score by their features."""
    similarity: Literal["dot", "cosine"] = "dot"
    temperature: float = 0.05
    """Of the cosine similarity; unused for dot products."""
    init_std: float = 0.02
    """Standard deviation of initial embeddings."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        if self.width % self.num_heads:
            raise ValueError(
                f"width ({self.width}) must be a multiple of num_heads ({self.num_heads})."
            )
        if self.max_history < 1 or self.num_layers < 1:
            raise ValueError(
                f"max_history ({self.max_history}) and num_layers ({self.num_layers}) must be "
                "at least 1."
            )
        if self.positions != "learned" and self.width // self.num_heads % 2:
            raise ValueError(
                f"width / num_heads ({self.width // self.num_heads}) must be even for rotary "
                "positions; positions='learned' takes any."
            )
        for name in ("dropout", "id_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 0, below 1.")
        if self.temperature <= 0:
            raise ValueError(f"temperature ({self.temperature}) must be above 0.")

    @property
    def hidden_width(self) -> int:
        """Width inside a feed-forward layer, a multiple of 8."""
        return self.hidden or -(-self.width * 8 // 3 // 8) * 8


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """A ``transformers`` decoder in the place of the compact backbone; by default none."""

    source: str | None = None
    """Pretrained weights: a local folder or a name on the Hugging Face hub; safetensors only."""
    settings: str = ""
    """Instead of a source, the config of a model with random weights as JSON:
    ``{"model_type": "qwen3", "hidden_size": 64, …}``."""
    tune: Literal["frozen", "lora", "full"] = "lora"
    """Train nothing of the model, low-rank adapters on all its linear maps, or all of it."""
    lora_rank: int = 8

    def __post_init__(self) -> None:
        """Check that at most one model is described."""
        if self.source and self.settings:
            raise ValueError(
                f"source ({self.source!r}) and settings ({self.settings!r}) must not both be "
                "given: a model has pretrained weights or random ones."
            )
        if self.settings and "model_type" not in self.model_settings:
            raise ValueError(
                f"settings ({self.settings!r}) must name a model_type, such as 'qwen3'."
            )
        if self.lora_rank < 1:
            raise ValueError(f"lora_rank ({self.lora_rank}) must be at least 1.")

    @property
    def is_compact(self) -> bool:
        """Whether no model is described, which stands for the library's own backbone."""
        return not self.source and not self.settings

    @property
    def model_settings(self) -> dict[str, Any]:
        """The settings as values."""
        try:
            values = json.loads(self.settings)
        except json.JSONDecodeError as error:
            raise ValueError(f"settings ({self.settings!r}) must be JSON: {error}.") from None
        if not isinstance(values, dict):
            raise ValueError(f"settings ({self.settings!r}) must be a JSON object.")
        return values


@dataclass(frozen=True, kw_only=True, slots=True)
class ReasonerConfig:
    """The block-causal latent reasoner."""

    num_steps: int = 2
    """K; 0 answers from the tail's first block."""
    decoder: Literal["own", "shared", "none"] = "own"
    """``shared`` runs the blocks through the backbone's layers (OnePiece); ``own`` through a few
    layers of the reasoner's own, over the backbone's last hidden states; ``none`` leaves the
    prefix head alone."""
    num_layers: int = 1
    """Layers of an own decoder."""
    step_embedding: bool = True
    isolated: bool = True
    """Stop the reasoner's gradients at whatever the prefix head uses: hidden states, item vectors,
    positions. The prefix head is then trained as it would be alone. A shared decoder's layers are
    the encoder's own and still learn from both."""
    zero_init: bool = True
    """Start an own decoder's layers at zero: every step first answers as the prefix head."""
    norm_rescale: bool = False
    """Scale each step's input to a learned multiple of the mean item norm (ManCAR)."""
    step_rank: int = 0
    """Rank of a step's own correction to its input; 0 for none."""
    gated: bool = False
    """Mix each step's output with its input through a learned gate, closed at first (PLR)."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        if self.num_steps < 0 or self.num_layers < 1 or self.step_rank < 0:
            raise ValueError(
                f"num_steps ({self.num_steps}) and step_rank ({self.step_rank}) must be "
                f"at least 0, num_layers ({self.num_layers}) at least 1."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RankerConfig:
    """The ranking stage: candidates in groups as one reasoning block, step by step."""

    decoder: Literal["none", "own", "shared"] = "none"
    """As the reasoner's; ``none`` leaves the model a retriever."""
    num_steps: int | None = None
    """K; None is one a task. 0 answers every task from the candidates' first pass."""
    num_layers: int = 1
    """Layers of an own decoder."""
    step_embedding: bool = True
    progressive: bool = True
    """Each step answers its own task, weakest first; else the last step answers all."""
    candidates_visible: bool = True
    """Whether candidates of a group see each other."""
    read_steps: bool = True
    """Whether candidates see the retrieval's reasoning steps."""
    read_score: bool = True
    """Start from the retrieval's own score of each candidate, and read how query and item match."""
    use_position: bool = False
    """Read the place in the list that was shown, in training; scoring keeps it neutral."""
    isolated: bool = True
    """Stop the ranking's gradients at whatever the retrieval uses."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        if (self.num_steps or 0) < 0 or self.num_layers < 1:
            raise ValueError(
                f"num_steps ({self.num_steps}) must be at least 0, num_layers "
                f"({self.num_layers}) at least 1."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSizes:
    """What the model must know of the data: table sizes and declared features."""

    num_items: int
    num_trained_items: int
    num_behaviors: int = FIRST_BEHAVIOR + 1
    num_coarse: int = 0
    num_tasks: int = 1
    """Of the retrieval: the funnel up to the declared target."""
    num_ranking_tasks: int = 1
    """Of the ranking: the whole funnel."""
    has_time: bool = True
    item_features: tuple[Feature, ...] = ()
    user_features: tuple[Feature, ...] = ()
    event_features: tuple[Feature, ...] = ()
    situation_features: tuple[Feature, ...] = ()
    """What the situation token is made of."""
    situation_texts: tuple[Feature, ...] = ()
    """Those of them that have text vectors, a row a code, and how wide these are."""
    anchor_lengths: tuple[int, ...] = ()
    """Items of each group of preference anchors."""

    @staticmethod
    def of(
        manifest: Manifest,
        *,
        situation: tuple[Feature, ...] = (),
        anchor_lengths: tuple[int, ...] = (),
    ) -> "DataSizes":
        """Sizes of a prepared data set.

        Args:
            manifest: Its manifest.
            situation: What the context tells of a moment.
            anchor_lengths: Items of each group of anchors the context holds.

        Returns:
            The sizes.
        """
        named = {feature.name for feature in situation}
        return DataSizes(
            num_items=manifest.num_items,
            num_trained_items=manifest.num_trained_items,
            num_behaviors=FIRST_BEHAVIOR + len(manifest.behaviors),
            num_coarse=manifest.num_coarse,
            num_tasks=max(1, len(manifest.tasks)),
            num_ranking_tasks=max(1, len(manifest.funnel)),
            has_time=manifest.has_time,
            item_features=manifest.item_features,
            user_features=manifest.user_features,
            event_features=manifest.event_features,
            situation_features=situation,
            situation_texts=tuple(f for f in manifest.event_texts if f.name in named),
            anchor_lengths=anchor_lengths,
        )

    @property
    def num_id_rows(self) -> int:
        """Rows of the item id table: padding, unknown, and the trained items."""
        return FIRST_ID + self.num_trained_items


@dataclass(frozen=True, kw_only=True, slots=True)
class RecommenderConfig:
    """A whole model."""

    data: DataSizes
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    reasoner: ReasonerConfig = field(default_factory=ReasonerConfig)
    ranker: RankerConfig = field(default_factory=RankerConfig)

    def __post_init__(self) -> None:
        """Check that the parts go together."""
        if not self.backbone.is_compact and (
            self.encoder.attention == "full" or self.encoder.relative_bias
        ):
            raise ValueError(
                "a transformers backbone reads causally and without relative_bias; got "
                f"encoder.attention {self.encoder.attention!r}, {self.encoder.relative_bias}."
            )
        if self.encoder.attention == "full":
            decoders = (self.reasoner.decoder, self.ranker.decoder)
            if decoders[0] != "shared" or decoders[1] == "own" or self.encoder.relative_bias:
                raise ValueError(
                    "encoder.attention 'full' needs reasoner.decoder 'shared', ranker.decoder "
                    f"'shared' or 'none', and no relative_bias; got {decoders} and "
                    f"{self.encoder.relative_bias}."
                )
