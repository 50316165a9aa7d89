"""GGUF files of every family and of pruned models, computed and cut by llama.cpp itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import GEMMA, METHODS, decoder, pruned
from llama_cpp_engine import evaluate
from tiny_llm import token_batch

from pangu_modules.llm.causal_lm import CausalLM
from pangu_modules.llm.export.gguf_vocabulary import PROBES

pytestmark = pytest.mark.slow  # needs an engine that the package does not depend on

CONTEXT = {"max_position_embeddings": 256}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "linear": ("llama", {"rope_parameters": LINEAR}),
    "yarn": ("llama", {"rope_parameters": YARN}),
    "yarn with another temperature": ("llama", {"rope_parameters": {**YARN, "attention_factor": 1.7}}),
    "llama 3": ("llama", {"rope_parameters": LLAMA3}),
    "mistral": ("mistral", {"head_dim": 16, "sliding_window": None}),
    "qwen2": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": ("gemma2", {**GEMMA, "sliding_window": 16}),
    "gemma3": ("gemma3_text", {**GEMMA, "sliding_window": 16, "rope_parameters": GEMMA3_ROPE}),
}


def check(module: CausalLM, folder: Path, kind: str = "gguf", tolerance: float = 0.05) -> None:
    """Compare log probabilities after each of 60 random tokens, and how texts are cut.

    Args:
        module: the model.
        folder: to write to.
        kind: export format.
        tolerance: largest difference, in standard deviations of the log probabilities; llama.cpp keeps keys and values
            in half precision.
    """
    tokens = token_batch(batch=1, seq=60)["input_ids"]
    with torch.no_grad():
        wanted = module.model.eval()(input_ids=tokens).logits[0].log_softmax(-1)
    module.export(folder / "out", kind)
    (file,) = (folder / "out").glob("*.gguf")
    texts = [text for text in PROBES if text]
    found, cut = evaluate(file, tokens[0].tolist(), texts, wanted.shape[-1])
    assert (found > 0).float().mean() > 0.9  # the engine leaves out what is too small to print
    difference = float((found.log() - wanted)[found > 0].abs().max() / wanted.std())
    print(f"difference {difference:.1e} standard deviations of {float(wanted.std()):.2f}")
    assert wanted.std() > 0.3
    assert difference < tolerance
    assert cut == [module.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_computes_what_transformers_does(name: str, tmp_path: Path) -> None:
    architecture, fields = FAMILIES[name]
    check(decoder(tmp_path, architecture, **{**CONTEXT, "initializer_range": 0.2, **fields}), tmp_path)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("llama", {"head_dim": 16, "rope_parameters": LLAMA3}),
        ("qwen2", {}),
        ("mistral", {"sliding_window": None}),
    ],
)
def test_llama_cpp_computes_what_a_pruned_model_does(
    method: str, architecture: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    sizes = {**CONTEXT, "initializer_range": 0.2}
    check(pruned(tmp_path, method, architecture, **{**sizes, **fields}), tmp_path)


@pytest.mark.parametrize(("kind", "tolerance"), [("gguf_f16", 0.05), ("gguf_q8_0", 0.5)])
def test_llama_cpp_reads_halves_and_eight_bits(kind: str, tolerance: float, tmp_path: Path) -> None:
    module = decoder(tmp_path, **{**CONTEXT, "initializer_range": 0.2})
    check(module, tmp_path, kind, tolerance)
