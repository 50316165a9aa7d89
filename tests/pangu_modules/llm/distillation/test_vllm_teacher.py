"""A teacher behind vLLM: the cache that it gives is the one of the same teacher in this process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sampled import Sums
from server_processes import serving

from pangu_modules import CausalLM, GenerateStage, GenerationEngine, Recipe, ScoreStage
from pangu_modules.llm.generation.server.serving import VLLM_PYTHON
from pangu_modules.llm.generation.store.score_rows import read_scores

SMOLLM2 = CausalLM.Config(model="smollm2")
TOP_K = 32
BOUND = 1e-3  # nats, as asked for; two implementations in float32, which the test of serving keeps within 1e-4


@pytest.mark.slow  # needs an engine that the package does not depend on
def test_vllm_s_cache_is_that_of_the_teacher_in_process(tmp_path: Path) -> None:
    """Would fail if the server's scores were shifted by a token, cut to its own k, or of another normaliser."""
    if VLLM_PYTHON not in os.environ:
        pytest.skip(f"needs vLLM's CPU build: {VLLM_PYTHON} names the Python of its environment")
    engine = GenerationEngine.Config(max_new_tokens=16, temperature=1.0, samples=2, logprobs=True, batch_size=4)
    common: dict[str, Any] = {"module": SMOLLM2, "device": "cpu"}
    stage = GenerateStage(**common, data=Sums.Config(num=3), engine=engine)
    rollouts = Recipe(stages={"": stage}).make(tmp_path / "samples", quiet=True).artefact
    module: Any = SMOLLM2.build()
    module.export(tmp_path / "teacher")

    def scored(name: str, **fields: Any) -> dict[tuple[str, int], Any]:
        kept = {"rollouts": str(rollouts), "top_k": TOP_K, "precision": "float32"}
        stage = ScoreStage(**common, **kept, engine=GenerationEngine.Config(batch_size=4, **fields))
        made = Recipe(stages={"": stage}).make(tmp_path / name, quiet=True)
        return {(one.key, one.sample): one for one in read_scores(made.artefact)}

    wanted = scored("here")
    with serving("vllm", tmp_path / "teacher", tmp_path / "log", "--max-model-len", "512") as base_url:
        found = scored("there", base_url=base_url, model=str(tmp_path / "teacher"))
    assert len(found) == 6
    assert found.keys() == wanted.keys()
    for place, own in found.items():
        here = wanted[place]
        assert own.sequence == here.sequence
        assert own.top_ids.shape == (len(own.logprobs), TOP_K)
        np.testing.assert_allclose(own.logprobs, here.logprobs, rtol=0, atol=BOUND)
        np.testing.assert_allclose(own.top_logprobs, here.top_logprobs, rtol=0, atol=BOUND)
        # Ids may change places where their probabilities are equal to the last digits, and the last one may be another.
        apart = np.abs(np.diff(here.top_logprobs, axis=1)) > BOUND
        alone = np.concatenate([apart[:, :1], apart[:, 1:] & apart[:, :-1]], axis=1)
        assert alone.mean() > 0.9
        assert (own.top_ids[:, :-1] == here.top_ids[:, :-1])[alone].all()
