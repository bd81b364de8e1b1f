"""Any ``transformers`` decoder as the backbone: the same prefix, tails and cache over its layers.

The model reads token embeddings instead of words (``inputs_embeds``), under our visibility rule (an
additive 4-D mask, SDPA only: eager attention misreads boolean masks) and at the positions we give.
Its word table is dropped. It is frozen, gets low-rank adapters (peft), or trains whole.

All tails of a row run as one packed sequence over one copy of the row's prefix:

```
keys      h1 … hT │ tail 0, block 0 │ tail 1, block 0 │ tail 0, block 1 │ tail 1, block 1
tail 1,
block 1   to cut  │                 │       all       │                 │       all
```

A row therefore holds T + L·J keys in memory (L tails of J tokens) and not L·(T + J), and forks
share what they have in common. In return each new block of M tokens copies the row's keys once and
scores all of them, of which a share is masked: 4·D·(T + L·J) operations a token and layer beside
the 24·D² or so of the layer's matrices.
"""

import hashlib
import json
import math
import textwrap
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from recsys.batch import History, Requests
from recsys.model.config import BackboneConfig
from recsys.model.encoder import PrefixState, as_layers, state_at
from recsys.nn.mask import causal_visible, prefix_visible
from recsys.nn.tail import CachedTail, Tail
from recsys.nn.transformer import KeysValues

if TYPE_CHECKING:
    from transformers import DynamicCache


class TransformersEncoder(nn.Module):
    """A ``transformers`` decoder behind the interface of the compact ``Encoder``.

    Weights are float32, as everywhere in the library. Where the model's width is not ours, linear
    maps lead in and out. A model's own sliding window gives way to our visibility rule.

    What is not trained and can be read from ``config.source`` again stays out of the state dict,
    and a fingerprint of it goes in, so that adapters never load onto another base.

    Args:
        config: Which model, and what of it trains.
        width: D, of the library's tokens and answers.

    Raises:
        ValueError: If the model cannot be loaded or built, or does not obey masks and caches.
        ImportError: If adapters are asked for and peft is not installed.
    """

    base_digest: Tensor | None

    def __init__(self, config: BackboneConfig, width: int) -> None:
        super().__init__()
        if config.is_compact:
            raise ValueError(
                f"config ({config}) must describe a model, by its source or its settings."
            )
        self.config = config
        self.model = _load(config.source) if config.source else _build(config.model_settings)
        inner = int(self.model.config.get_text_config().hidden_size)
        self.model.set_input_embeddings(None)
        _check_obeys(self.model, inner)
        from_source = bool(config.source) and config.tune != "full"
        digest = _fingerprint(self.model.named_parameters()) if from_source else None
        self.register_buffer("base_digest", digest)
        if config.tune != "full":
            self.model.requires_grad_(False)
        if config.tune == "lora":
            _add_adapters(self.model, config.lora_rank)
        self.into = nn.Identity() if inner == width else nn.Linear(width, inner)
        self.out = nn.Identity() if inner == width else nn.Linear(inner, width)
        trained = {name for name, value in self.model.named_parameters() if value.requires_grad}
        self.left_out = (
            frozenset(f"model.{name}" for name in self.model.state_dict() if name not in trained)
            if from_source
            else frozenset()
        )
        """Names that the state dict leaves to ``config.source``."""
        self.register_state_dict_post_hook(_leave_out)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_fill_in)  # type: ignore[no-untyped-call]
        self.train()

    @property
    def saved_config(self) -> BackboneConfig:
        """The config that rebuilds this encoder for its state dict.

        A model that trained whole no longer needs its source; the others do.
        """
        if not self.config.source or self.config.tune != "full":
            return self.config
        settings = json.dumps(json.loads(self.model.config.to_json_string()))
        return replace(self.config, source=None, settings=settings)

    def train(self, mode: bool = True) -> "TransformersEncoder":
        """Switch dropout on or off; a frozen model's own dropout stays off."""
        super().train(mode)
        if self.config.tune == "frozen":
            self.model.eval()
        return self

    def prefix(self, x_BTD: Tensor, history: History) -> PrefixState:
        """Read the history once, causally.

        Args:
            x_BTD: Token embeddings, padded on the right.
            history: The events.

        Returns:
            Last hidden states and the cache.
        """
        from transformers import DynamicCache

        cache, at = DynamicCache(), torch.arange(x_BTD.shape[1], device=x_BTD.device)
        visible = causal_visible(len(at), at.device)
        hidden = self.read(x_BTD, visible[None], at[None], cache)
        return PrefixState(hidden, _keys_values(cache), history)

    def prefix_at(self, x_BTD: Tensor, history: History, cut: Tensor) -> Tensor:
        """Read the history for the last token each request may see, (B, Q, D); zero for none."""
        return state_at(self.prefix(x_BTD, history).hidden, cut)

    def open_tail(
        self, prefix: PrefixState, requests: Requests, layers: nn.ModuleList | None = None
    ) -> Tail:
        """Open the tails of requests over a prefix.

        Args:
            prefix: As read; detached where the tails must not train it.
            requests: Their cuts say what each may see.
            layers: A decoder's own compact layers, whose keys are made of the prefix's last hidden
                states; None for the model's layers and their own cache.

        Returns:
            Empty tails.
        """
        visible = prefix_visible(requests.cut, prefix.hidden.shape[1])
        if layers is None:
            return TransformersTail(self, prefix.cache, visible)
        own = as_layers(layers)
        return CachedTail(own, [layer.cache_prefix(prefix.hidden) for layer in own], visible)

    def read(
        self, x_BSD: Tensor, visible_BSJ: Tensor, position_BS: Tensor, cache: "DynamicCache"
    ) -> Tensor:
        """Run tokens through the whole model.

        Args:
            x_BSD: S new tokens a row.
            visible_BSJ: Which of the J keys, cached and new, each may attend to; (1, S, J) where
                all rows are alike.
            position_BS: Their positions, int64; (1, S) where all rows are alike.
            cache: Keys and values so far; those of the new tokens are appended.

        Returns:
            Last hidden states, (B, S, D).
        """
        x_BSD = self.into(x_BSD)
        return self.out(_run(self.model, x_BSD, visible_BSJ, position_BS, cache))  # type: ignore[no-any-return]


class TransformersTail:
    """All tails of a row as one packed sequence, see ``recsys.nn.tail.Tail``.

    Args:
        encoder: Whose model reads the blocks.
        cache: Keys and values of every layer, (B, H, J, d) each; not changed.
        visible_BLJ: Which of the cached keys a tail may see.
    """

    def __init__(
        self, encoder: TransformersEncoder, cache: Iterable[KeysValues], visible_BLJ: Tensor
    ) -> None:
        from transformers import DynamicCache

        self._encoder, self._visible_BLJ = encoder, visible_BLJ
        self._cache = DynamicCache(list(cache))

    def append(
        self, x_BLMD: Tensor, position_BLM: Tensor, valid_BLM: Tensor | None = None, skip: int = 0
    ) -> Tensor:
        """Run one more block of every tail through all layers."""
        B, L, M, _ = x_BLMD.shape
        each = torch.eye(L, dtype=torch.bool, device=x_BLMD.device)
        own_BLS = each.repeat_interleave(M, dim=1).expand(B, L, L * M)
        if valid_BLM is not None:
            own_BLS = own_BLS & valid_BLM.flatten(1)[:, None]
        self._visible_BLJ = torch.cat((self._visible_BLJ, own_BLS), dim=-1)
        visible_BSJ = self._visible_BLJ.repeat_interleave(M, dim=1)
        # A token that nobody may attend to sees at least itself: an empty softmax may be NaN.
        visible_BSJ[..., -L * M :].diagonal(dim1=1, dim2=2).fill_(True)
        hidden = self._encoder.read(
            x_BLMD.flatten(1, 2), visible_BSJ, position_BLM.flatten(1), self._cache
        )
        return hidden.view(B, L, M, -1)[:, :, skip:]

    def fork(self, num_groups: int) -> "TransformersTail":
        """Let every tail go on in groups; their keys so far stay shared."""
        visible = self._visible_BLJ.repeat_interleave(num_groups, dim=1)
        return TransformersTail(self._encoder, _keys_values(self._cache), visible)


def _keys_values(cache: "DynamicCache") -> list[KeysValues]:
    return [(k, v) for k, v, _ in cache]


def _run(
    model: nn.Module, x_BSD: Tensor, visible: Tensor, position: Tensor, cache: "DynamicCache"
) -> Tensor:
    mask = torch.zeros(visible.shape, dtype=x_BSD.dtype, device=x_BSD.device)
    # These five names and no others: models swallow misspelt ones without a word.
    return model(  # type: ignore[no-any-return]
        inputs_embeds=x_BSD,
        attention_mask=mask.masked_fill_(~visible, -math.inf)[:, None],
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state


def _load(source: str) -> Any:
    """Pretrained weights; no code of the model's folder is run and nothing is unpickled."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModel

    try:
        model, found = AutoModel.from_pretrained(
            source,
            attn_implementation="sdpa",
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, StrictDataclassError, ValueError) as error:
        raise ValueError(
            f"source ({source!r}) must be a folder or a hub name of a transformers decoder "
            f"with safetensors weights: {_short(error)}"
        ) from None
    if found["missing_keys"]:
        raise ValueError(
            f"source ({source!r}) lacks weights that would stay random: "
            f"{_short(sorted(found['missing_keys']))}"
        )
    return model


def _build(settings: dict[str, Any]) -> Any:
    """A model with random weights, drawn from torch's generator."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.for_model(**settings)
        return AutoModel.from_config(  # type: ignore[no-untyped-call]
            config, attn_implementation="sdpa", dtype=torch.float32, trust_remote_code=False
        )
    except (AttributeError, StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(
            f"settings ({settings}) must be the config of a transformers decoder: {_short(error)}"
        ) from None


def _add_adapters(model: Any, rank: int) -> None:
    """Low-rank adapters on every linear map, scaled by 2; they start as nothing."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ImportError(
            "tune='lora' needs peft: install the extra, pip install 'recsys[lora]', or choose "
            "tune='frozen' or 'full'."
        ) from None
    adapters = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    inject_adapter_in_model(adapters, model)


def _check_obeys(model: nn.Module, width: int) -> None:
    """Refuse a model that reads what a mask hides, or that does not read its cache.

    Token 2 must be the same whether token 1 is not there or is cached and masked.
    """
    from transformers import DynamicCache

    x = torch.arange(3.0 * width).cos().view(1, 3, width)
    causal, at, masked = causal_visible(2)[None], torch.arange(2)[None], [[[True, False, True]]]
    model.eval()
    try:
        with torch.no_grad():
            alone = _run(model, x[:, [0, 2]], causal, at, DynamicCache())[:, 1]
            cache = DynamicCache()
            _run(model, x[:, :2], causal, at, cache)
            told = _run(model, x[:, 2:], torch.tensor(masked), at[:, 1:], cache)[:, 0]
        obeys = bool((alone - told).abs().max() <= 1e-4 * alone.abs().max())
        reason = "its outputs change with tokens that are masked, or with the cache"
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        obeys, reason = False, _short(error)
    if not obeys:
        raise ValueError(
            f"{type(model).__name__} cannot be a backbone, {reason}. Choose a decoder that takes "
            "inputs_embeds, a 4-D attention mask, position_ids and a key-value cache, such as "
            "Qwen3 or Llama."
        )


def _short(error: object) -> str:
    return textwrap.shorten(str(error), 300)


def _fingerprint(parameters: Iterable[tuple[str, Tensor]]) -> Tensor:
    """SHA-256 of the names and shapes of all parameters and the first values of each, (32,)."""
    sha = hashlib.sha256()
    for name, value in parameters:
        sha.update(f"{name} {tuple(value.shape)}".encode())
        sha.update(value.detach().flatten()[:64].numpy().tobytes())
    return torch.tensor(list(sha.digest()), dtype=torch.uint8)


def _leave_out(
    encoder: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    assert isinstance(encoder, TransformersEncoder)
    for name in encoder.left_out:
        del state[prefix + name]


def _fill_in(
    encoder: nn.Module,
    state: dict[str, Any],
    prefix: str,
    metadata: dict[str, Any],
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    assert isinstance(encoder, TransformersEncoder)
    digest = state.get(f"{prefix}base_digest")
    if encoder.base_digest is not None and digest is not None:
        if not torch.equal(digest.cpu(), encoder.base_digest.cpu()):
            errors.append(
                f"these weights were trained on another model than is now at "
                f"{encoder.config.source!r}"
            )
    own = dict(encoder.model.state_dict())
    for name in encoder.left_out:
        state[prefix + name] = own[name.removeprefix("model.")]
