"""A ``transformers`` decoder as backbone: what trains, what is saved, what is refused."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_decoder import DECODERS, SETTINGS, D, assert_equal, case, make
from torch import Tensor, nn

from recsys.config import from_dict, to_dict
from recsys.model import backbone_hf
from recsys.model.backbone_hf import TransformersEncoder
from recsys.model.config import BackboneConfig


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A pretrained model's folder; its causal language model carries a head we do not need."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SETTINGS))
    model.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def trained(encoder: TransformersEncoder) -> set[str]:
    """Names of the parameters that a step gives a gradient."""
    c = case()
    c.prefix = c.prefix.requires_grad_()
    sum(x.square().sum() for x in c.fast(encoder.double())).backward()  # type: ignore[union-attr]
    assert c.prefix.grad is not None
    assert c.prefix.grad.any(), "a model that does not train still passes gradients on"
    return {n for n, p in encoder.named_parameters() if p.grad is not None and p.grad.any()}


def outputs(encoder: TransformersEncoder) -> list[Tensor]:
    with torch.no_grad():
        return case().fast(encoder.double().eval())


def test_a_frozen_model_has_no_gradients_and_only_its_projections_train() -> None:
    projected = DECODERS["projected"]
    assert trained(make(tune="frozen")) == set()
    maps = {"into.weight", "into.bias", "out.weight", "out.bias"}
    assert trained(make(projected, tune="frozen")) == maps
    full = make(projected, tune="full")
    assert trained(full) == {name for name, _ in full.named_parameters()}


def test_a_frozen_models_own_dropout_stays_off_in_training() -> None:
    settings = {**SETTINGS, "attention_dropout": 0.5}
    for tune, alike in (("frozen", True), ("full", False)):
        encoder = make(settings, tune=tune).double()  # in training, as every new module is
        with torch.no_grad():
            one, other = case().fast(encoder)[-1], case().fast(encoder)[-1]
        assert torch.equal(one, other) == alike


@pytest.mark.parametrize("decoder", ["projected", "gpt_neox"])
def test_only_the_adapters_and_projections_train_and_adapters_start_as_nothing(
    decoder: str,
) -> None:
    pytest.importorskip("peft", reason="needs the extra: pip install 'recsys[lora]'")
    settings = {**DECODERS[decoder], "hidden_size": 24, "num_attention_heads": 4}
    encoder = make(settings, tune="lora", lora_rank=3)
    plain = make(settings, tune="full")
    state = {name.replace(".base_layer", ""): value for name, value in encoder.state_dict().items()}
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    assert_equal(outputs(encoder), outputs(plain))
    for name, value in encoder.named_parameters():
        if "lora_B" in name:  # zero at first, so that A has no gradient yet
            assert not value.any()
            assert value.shape[1] == 3
            nn.init.normal_(value)
    found = trained(encoder)
    assert found == {n for n, _ in encoder.named_parameters() if "lora_" in n or "model" not in n}
    assert any("lora_A" in name for name in found)


def test_an_adapter_adds_twice_its_low_rank_product() -> None:
    pytest.importorskip("peft", reason="needs the extra: pip install 'recsys[lora]'")
    layer: Any = make(tune="lora", lora_rank=2).model.get_submodule("layers.0.self_attn.q_proj")
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    nn.init.normal_(up)
    x = torch.randn(5, D)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 2 * x @ down.T @ up.T)


@pytest.mark.parametrize("tune", ["frozen", "lora"])
def test_the_state_dict_leaves_an_untrained_base_to_its_source(
    source: str, tmp_path: Path, tune: str
) -> None:
    if tune == "lora":
        pytest.importorskip("peft", reason="needs the extra: pip install 'recsys[lora]'")
    saved = make(source=source, tune=tune)
    for value in saved.parameters():
        if value.requires_grad:
            nn.init.normal_(value)
    state = saved.state_dict()
    assert all("lora_" in name for name in set(state) - {"base_digest"})
    assert ("base_digest" in state, len(state) > 1) == (True, tune == "lora")
    save_file(state, tmp_path / "weights.safetensors")
    assert saved.saved_config == saved.config
    config = from_dict(BackboneConfig, to_dict(saved.saved_config))
    again = TransformersEncoder(config, D)
    # As a part of a larger model, whose names carry a prefix.
    whole = nn.ModuleDict({"encoder": again})
    loaded = load_file(tmp_path / "weights.safetensors")
    whole.load_state_dict({f"encoder.{name}": value for name, value in loaded.items()})
    assert_equal(outputs(again), outputs(saved))
    assert set(whole.state_dict()) == {f"encoder.{name}" for name in state}


def test_weights_of_another_base_are_refused(source: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    saved = make(source=source, tune="frozen").state_dict()
    other = AutoModel.from_pretrained(source)
    other.get_parameter("layers.0.mlp.up_proj.weight").data += 1e-3
    other.save_pretrained(tmp_path / "other")
    encoder = make(source=str(tmp_path / "other"), tune="frozen")
    with pytest.raises(RuntimeError, match=f"another model than is now at '{tmp_path}/other'"):
        encoder.load_state_dict(saved)
    lost = make(source=source, tune="frozen")
    with pytest.raises(RuntimeError, match="base_digest"):
        lost.load_state_dict({})


def test_a_model_that_trained_whole_is_saved_whole_and_needs_its_source_no_more(
    source: str,
) -> None:
    saved = make(source=source, tune="full")
    shutil.rmtree(source)
    config = from_dict(BackboneConfig, json.loads(json.dumps(to_dict(saved.saved_config))))
    assert config.source is None
    again = TransformersEncoder(config, D)
    again.load_state_dict(saved.state_dict())
    assert_equal(outputs(again), outputs(saved))


def test_a_model_from_settings_is_saved_whole_even_where_it_is_frozen() -> None:
    saved, again = make(tune="frozen"), make(tune="frozen", seed=1)
    again.load_state_dict(saved.state_dict())
    assert_equal(outputs(again), outputs(saved))


def test_pretrained_weights_are_read_as_they_are_and_without_the_word_table(source: str) -> None:
    stored = load_file(Path(source) / "model.safetensors")
    encoder = make(source=source)
    found = {f"model.{name}": value for name, value in encoder.model.state_dict().items()}
    assert set(stored) - set(found) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert all(torch.equal(value, stored[name]) for name, value in found.items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"source": "a", "settings": "{}"},
            r"source \('a'\) and settings \('\{\}'\) must not both",
        ),
        ({"settings": "qwen3"}, r"settings \('qwen3'\) must be JSON"),
        ({"settings": "[3]"}, r"settings \('\[3\]'\) must be a JSON object"),
        ({"settings": '{"layers": 4}'}, r"settings \('\{\"layers\": 4\}'\) must name a model_type"),
        ({"source": "a", "lora_rank": 0}, r"lora_rank \(0\) must be at least 1"),
    ],
)
def test_a_config_describes_one_model_at_most(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BackboneConfig(**fields)


def test_a_config_of_no_model_stands_for_the_compact_backbone() -> None:
    assert BackboneConfig().is_compact
    assert not BackboneConfig(source="a").is_compact
    with pytest.raises(ValueError, match=r"source=None.* must describe a model"):
        TransformersEncoder(BackboneConfig(), D)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "no-such"}, "'no-such'.*transformers decoder: Unrecognized model"),
        ({**SETTINGS, "hidden_size": "wide"}, "'wide'.*must be the config"),
        ({**SETTINGS, "model_type": "bloom"}, "'bloom'.*scaled_dot_product_attention"),
        ({**SETTINGS, "model_type": "t5", "d_model": 16}, "T5Model cannot be a backbone"),
    ],
)
def test_a_model_that_is_no_decoder_of_ours_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(settings)


class Deaf(nn.Module):
    """Reads whatever is in its input, whatever the mask says."""

    def forward(self, inputs_embeds: Tensor, past_key_values: Any, **ignored: Any) -> Any:
        keys = inputs_embeds[:, None]
        seen, _ = past_key_values.update(keys, keys, 0)
        mean = seen[:, 0].mean(dim=1, keepdim=True)
        return type("Output", (), {"last_hidden_state": mean.expand_as(inputs_embeds)})


def test_a_model_that_does_not_obey_masks_is_refused() -> None:
    with pytest.raises(ValueError, match="Deaf cannot be a backbone, its outputs change with"):
        backbone_hf._check_obeys(Deaf(), 8)


def test_pickled_weights_are_refused(source: str) -> None:
    folder = Path(source)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"source \('.*base'\).*safetensors weights"):
        make(source=source)


def test_code_in_a_models_folder_is_not_run(source: str, tmp_path: Path) -> None:
    folder, witness = Path(source), tmp_path / "was-run"
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    config |= {"model_type": "own-code", "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(witness)!r}, 'w').close()\n")
    with pytest.raises(ValueError, match=r"source \('.*base'\)"):
        make(source=source)
    assert not witness.exists()


def test_weights_that_are_missing_are_not_left_random(source: str) -> None:
    path = Path(source) / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights.*layers\.1\.mlp\.up_proj"):
        make(source=source)


def test_adapters_without_peft_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"tune='lora' needs peft.*recsys\[lora\]"):
        make(tune="lora")
