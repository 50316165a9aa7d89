"""Released openPangu Embedded folders: read without their code, and equal to a slow model written from the formulas."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pangu_folder import RELEASED, pangu_folder
from tiny_llm import byte_tokenizer, token_batch

from pangu_modules.llm.causal_lm import CausalLM
from pangu_modules.llm.models.loading import load_causal_lm, load_config, new_config, plain_config
from pangu_modules.llm.models.tokenizer_loading import load_tokenizer

ONE_BILLION = {
    "hidden_size": 1536,
    "intermediate_size": 6144,
    "num_hidden_layers": 26,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
}


def slow_logits(weights: dict[str, torch.Tensor], config: dict[str, Any], ids: list[int]) -> torch.Tensor:
    """Return the logits (seq, vocabulary) of one sequence, a position and a head at a time."""
    state = {name: tensor.double() for name, tensor in weights.items()}
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    repeats = config["num_attention_heads"] // config["num_key_value_heads"]

    def norm(row: torch.Tensor, name: str) -> torch.Tensor:
        return row / math.sqrt(float(row.square().mean()) + config["rms_norm_eps"]) * state[f"{name}.weight"]

    def linear(row: torch.Tensor, name: str) -> torch.Tensor:
        return state[f"{name}.weight"] @ row + state.get(f"{name}.bias", torch.zeros(1).double())

    def turned(head: torch.Tensor, place: int) -> torch.Tensor:
        out, half = head.clone(), head_dim // 2
        for pair in range(half):
            angle = place * config["rope_theta"] ** (-2 * pair / head_dim)
            one, other = head[pair], head[pair + half]
            out[pair] = one * math.cos(angle) - other * math.sin(angle)
            out[pair + half] = other * math.cos(angle) + one * math.sin(angle)
        return out

    rows = [state["model.embed_tokens.weight"][number] for number in ids]
    for layer in range(config["num_hidden_layers"]):
        start = f"model.layers.{layer}"
        inputs = [norm(row, f"{start}.input_layernorm") for row in rows]
        q, k, v = ([linear(row, f"{start}.self_attn.{n}_proj").view(-1, head_dim) for row in inputs] for n in "qkv")
        for place, row in enumerate(rows):
            heads = []
            for head in range(config["num_attention_heads"]):
                query = turned(q[place][head], place)
                keys = [turned(k[earlier][head // repeats], earlier) for earlier in range(place + 1)]
                scores = torch.stack([query @ key / math.sqrt(head_dim) for key in keys]).softmax(0)
                heads.append(sum(share * v[earlier][head // repeats] for earlier, share in enumerate(scores)))
            rows[place] = row + linear(torch.cat(heads), f"{start}.self_attn.o_proj")
        for place, row in enumerate(rows):
            inner = norm(row, f"{start}.post_attention_layernorm")
            gate = torch.nn.functional.silu(linear(inner, f"{start}.mlp.gate_proj"))
            rows[place] = row + linear(gate * linear(inner, f"{start}.mlp.up_proj"), f"{start}.mlp.down_proj")
    head_name = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return torch.stack([linear(norm(row, "model.norm"), head_name) for row in rows])


@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": True}, {"bias": False}, {"head_dim": 16}])
@pytest.mark.parametrize("trust", [False, True])
def test_logits_equal_a_slow_model_with_biases_and_no_code_is_run(
    tmp_path: Path, fields: dict[str, Any], trust: bool
) -> None:
    # Catches: a bias of o_proj left out, Llama's own rope_theta or eps, heads shared in another order, its code run.
    weights = pangu_folder(tmp_path, **fields)
    ids = token_batch(batch=1, seq=7)["input_ids"]
    model: Any = load_causal_lm(str(tmp_path), dtype=torch.float64, trust_remote_code=trust)
    with torch.no_grad():
        found = model(ids).logits[0]
    wanted = slow_logits(weights, {**RELEASED, **fields}, ids[0].tolist())
    # Measured: 4e-6 on logits up to 19, since transformers takes norms and cosines in float32; one bias of o_proj left
    # out changes them by 1.4.
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)
    assert not (tmp_path / "run").exists()
    assert model.training
    assert model.config.eos_token_id == 1


def test_what_a_file_leaves_out_is_the_family_s_and_not_llama_s(tmp_path: Path) -> None:
    pangu_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "PanguEmbedded"}')
    config = load_config(str(tmp_path))
    assert (config.num_hidden_layers, config.num_key_value_heads, config.vocab_size) == (34, 8, 153_376)
    assert (config.attention_bias, config.rms_norm_eps, config.eos_token_id) == (True, 1e-5, 45_892)
    assert config.rope_parameters["rope_theta"] == 16_000_000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"sandwich_norm": True},
            "its config.json has sandwich_norm=True, which no PanguEmbedded that is known here has",
        ),
        ({"rms_norm_epps": 1e-6}, "Did you mean 'rms_norm_eps'"),
        ({"attention_bias": False}, "bias=True and attention_bias=False are one thing: give one"),
        ({"num_key_value_heads": 3}, "its weights do not fit its config.json"),
        ({"hidden_size": "wide"}, "cannot be loaded"),
    ],
)
def test_what_may_compute_something_else_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    pangu_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**RELEASED, **fields}))
    with pytest.raises(ValueError, match="model=") as caught:
        load_causal_lm(str(tmp_path))
    assert message in str(caught.value)


def test_configuration_is_plain_data_and_back() -> None:
    # Catches: fields that equal Llama's default (32 layers) dropped, and read back as the family's (34).
    given = {**ONE_BILLION, "num_hidden_layers": 32, "head_dim": 128, "rms_norm_eps": 1e-6, "pad_token_id": None}
    config = new_config("PanguEmbedded", {**given, "bias": True})
    architecture, fields = plain_config(config)
    assert architecture == "PanguEmbedded"
    again = new_config(architecture, fields)
    assert again.to_dict() == config.to_dict()
    assert plain_config(again) == (architecture, fields)
    assert again.num_hidden_layers == 32
    with pytest.raises(ValueError, match="has no field 'hidden_sizes'"):
        new_config("PanguEmbedded", {"hidden_sizes": 4})
    assert plain_config(new_config("llama", {"attention_bias": True}))[0] == "llama"


@pytest.mark.parametrize(
    ("fields", "parameters"),
    # The 1B: 26 layers with 3,840 biases each beside 1,391,377,920 weights. The 7B as its authors' table counts it.
    [(ONE_BILLION, 1_391_377_920 + 26 * (12 + 6 + 6) * 128 + 26 * 1536), ({}, 8_030_887_936)],
)
def test_sizes_of_the_released_models(fields: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        module = CausalLM.Config(architecture="PanguEmbedded", model_args=fields).build()
    assert sum(parameter.numel() for parameter in module.model.parameters()) == parameters


def test_tokenizer_is_read_from_its_file_or_refused_where_it_is_code(tmp_path: Path) -> None:
    pangu_folder(tmp_path / "file")
    pangu_folder(tmp_path / "code", tokenizer_file=False)
    assert load_tokenizer(str(tmp_path / "file"))("he")["input_ids"] == [258]
    for load in (load_tokenizer, lambda name: CausalLM.Config(model=name).build()):
        with pytest.raises(ValueError, match=r"is Python code .*trust_remote_code=True .*module\.tokenizer"):
            load(str(tmp_path / "code"))
    other = str(byte_tokenizer(tmp_path / "other"))
    module = CausalLM.Config(model=str(tmp_path / "code"), tokenizer=other).build()
    assert module.tokenizer("he")["input_ids"] == [258]
    assert not list(tmp_path.rglob("run"))
