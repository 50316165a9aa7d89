"""A pruned model's GGUF file, read by llama.cpp itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from llama_cpp_engine import continue_greedily
from tiny_llm import byte_tokenizer, tiny_module, token_batch

from pangu_modules import PanguLightConfig, ShapePlan, TargetShape
from pangu_modules.llm.pruning.pangu_light.pipeline import prune_pangu_light

COUNT = 12


@pytest.mark.slow  # needs an engine that the package does not depend on
def test_llama_cpp_continues_a_pruned_model_as_transformers_does(tmp_path: Path) -> None:
    sizes = {"vocab_size": 270, "head_dim": 16, "num_hidden_layers": 4, "initializer_range": 0.4}
    module = tiny_module(data_tokenizer=byte_tokenizer(tmp_path / "tokenizer"), model_args=sizes)
    target = TargetShape(num_hidden_layers=3, hidden_size=24, intermediate_size=40, num_key_value_heads=1)
    batch = token_batch()
    prune_pangu_light(module.model, PanguLightConfig(target=target), [batch])
    module.restructure(ShapePlan.of(module.model))
    module.export(tmp_path, "gguf")
    tokens = batch["input_ids"][0].tolist()
    model = module.model.eval()
    want = list(tokens)
    for _ in range(COUNT):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([want])).logits[0, -1]
        best, second = logits.topk(2).values.tolist()
        assert best - second > 0.05  # llama.cpp keeps its cache in half precision: no near ties, or all bets are off
        want.append(int(logits.argmax()))
    assert len(set(want[len(tokens) :])) > 3  # a continuation that says something
    assert continue_greedily(tmp_path / "model-f32.gguf", tokens, COUNT) == want[len(tokens) :]
