"""The engine's races at miniature size: both sides write the same, of the lengths that were drawn."""

import pytest
from tiny_llm import tiny_module

from benchmarks.methods.generation.engine_race import (
    Load,
    contests,
    lognormal_lengths,
    prompts_of,
    unlike,
    written_by_engine,
    written_by_generate,
)
from benchmarks.races.race import run_contests

LOAD = Load(prompts=18, prompt_tokens=(3, 6), median=4, longest=20, shared_prompt=12, shared_tokens=4)


@pytest.fixture
def model():
    return tiny_module().model.eval().double()


def test_the_sides_of_each_race_agree(model):
    entries = run_contests(contests(model, LOAD), repeats=1, report=lambda line: None)
    assert [entry["id"] for entry in entries] == ["lognormal_lengths", "shared_prefill"]
    assert [(entry["error"], entry["target"]) for entry in entries] == [(0, 1.5), (0, 2.0)]


def test_both_write_the_lengths_that_were_drawn(model):
    """Catches a side that is spared its longest completions."""
    model.generation_config.eos_token_id = None
    prompts, lengths = prompts_of(model, LOAD.prompts, LOAD.prompt_tokens), lognormal_lengths(LOAD)
    assert len(set(lengths)) > 4
    for write in (written_by_engine, written_by_generate):
        assert [len(tokens) for tokens in write(model, prompts, lengths)] == lengths


def test_unlike_tokens_are_counted():
    assert unlike([[1, 2], [3]], [[1, 5], [3]]) == 1 / 3
    assert unlike([[1, 2], [3]], [[1, 2], [3, 4]]) == 2 / 4
