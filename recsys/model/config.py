"""What a model is made of: one frozen config a part, composed into ``RecommenderConfig``."""

from dataclasses import dataclass, field
from typing import Literal

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
class DataSizes:
    """What the model must know of the data: table sizes and declared features."""

    num_items: int
    num_trained_items: int
    num_behaviors: int = FIRST_BEHAVIOR + 1
    num_coarse: int = 0
    num_tasks: int = 1
    has_time: bool = True
    item_features: tuple[Feature, ...] = ()
    user_features: tuple[Feature, ...] = ()
    event_features: tuple[Feature, ...] = ()

    @staticmethod
    def of(manifest: Manifest) -> "DataSizes":
        """Sizes of a prepared data set."""
        return DataSizes(
            num_items=manifest.num_items,
            num_trained_items=manifest.num_trained_items,
            num_behaviors=FIRST_BEHAVIOR + len(manifest.behaviors),
            num_coarse=manifest.num_coarse,
            num_tasks=max(1, len(manifest.tasks)),
            has_time=manifest.has_time,
            item_features=manifest.item_features,
            user_features=manifest.user_features,
            event_features=manifest.event_features,
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
    reasoner: ReasonerConfig = field(default_factory=ReasonerConfig)
