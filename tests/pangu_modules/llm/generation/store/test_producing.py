"""Data stages with the engine itself and a tiny model: what a teacher says of its own samples is what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sampled import TINY, Sums, rows
from tiny_llm import word_tokenizer

from pangu_modules import GenerateStage, GenerationEngine, Recipe, ScoreStage
from pangu_modules.llm.generation.store.rollouts import read_rollouts
from pangu_modules.llm.generation.store.score_rows import read_scores, sequence_hash


def test_a_model_scores_its_own_samples_as_it_sampled_them(tmp_path: Path) -> None:
    """Would fail if scores were those of the tokens before or after, or prompts were read through another template."""
    module = TINY.derive(tokenizer=str(word_tokenizer(tmp_path / "words")))
    engine = GenerationEngine.Config(max_new_tokens=6, temperature=1.0, samples=2, logprobs=True, batch_size=4)
    fields = {"module": module, "engine": engine, "device": "cpu"}
    data = Sums.Config(num=4)
    made = Recipe(stages={"": GenerateStage(**fields, data=data, tasks_per_shard=2)}).make(tmp_path / "a", quiet=True)
    scored = Recipe(stages={"": ScoreStage(**fields, rollouts=str(made.artefact), top_k=3, precision="float32")}).make(
        tmp_path / "b"
    )
    samples = {(one.key, one.sample): one for one in read_rollouts(made.artefact)}
    scores = list(read_scores(scored.artefact))
    assert len(scores) == len(samples) == 8
    for row in scores:
        own = samples[row.key, row.sample]
        assert row.sequence == sequence_hash(own.prompt_ids, own.token_ids, own.policy_mask)
        assert own.logprobs is not None
        # Both are float32, of batches of other shapes: seen 1.2e-6 apart at most.
        np.testing.assert_allclose(row.logprobs, own.logprobs, rtol=0, atol=1e-5)
        assert (row.logprobs <= row.top_logprobs[:, 0] + 1e-5).all()
        assert row.top_ids.shape == (len(own.token_ids), 3)


def test_samples_do_not_depend_on_the_parts_they_are_asked_in(tmp_path: Path) -> None:
    module = TINY.derive(tokenizer=str(word_tokenizer(tmp_path / "words")))
    engine = GenerationEngine.Config(max_new_tokens=6, temperature=1.0, samples=2)
    texts = []
    for size in (1, 4):
        stage = GenerateStage(
            module=module, data=Sums.Config(num=4), engine=engine, tasks_per_shard=size, device="cpu", seed=3
        )
        made = Recipe(stages={"": stage}).make(tmp_path / str(size), quiet=True)
        texts.append([(row["key"], row["sample"], row["text"]) for row in rows(made.artefact)])
    assert texts[0] == texts[1]
    assert len({text for _, _, text in texts[0]}) > 1


def test_a_prompt_that_is_longer_than_the_model_is_refused(tmp_path: Path) -> None:
    tokenizer = str(word_tokenizer(tmp_path / "words"))
    module = TINY.derive(tokenizer=tokenizer, model_args={**TINY.model_args, "max_position_embeddings": 4})
    stage = GenerateStage(module=module, data=Sums.Config(), engine=GenerationEngine.Config(), device="cpu")
    with pytest.raises(ValueError, match="position"):
        Recipe(stages={"": stage}).make(tmp_path / "run", quiet=True)
