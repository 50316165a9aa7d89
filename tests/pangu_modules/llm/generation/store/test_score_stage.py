"""The stage of kind score: behind a server, on a full disk, with a teacher of a padded head or of broken values."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import seed_everything
from openai_server import OpenAIServer
from sampled import FIRST, SeededEngine, Sums, hashes, pipeline, refusal
from tiny_llm import TINY_LLAMA, word_tokenizer

from pangu_modules import CausalLM, GenerateStage, GenerationEngine, Recipe, ScoreStage
from pangu_modules.engine.cli import main
from pangu_modules.engine.folder import RUN_DIR_VARIABLE
from pangu_modules.llm.generation.records import SequenceScores
from pangu_modules.llm.generation.store.score_rows import read_scores
from pangu_modules.llm.generation.store.shard_files import read_manifest
from pangu_modules.llm.generation.store.shards import ShardStore


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "argv", ["toy.py"])
    monkeypatch.setattr(SeededEngine, "calls", [])


def module_of(folder: Path, **model_args: Any) -> CausalLM.Config:
    words = folder / "words"
    tokenizer = str(words if words.is_dir() else word_tokenizer(words))
    return CausalLM.Config(architecture="llama", model_args={**TINY_LLAMA, **model_args}, tokenizer=tokenizer)


def samples_in(folder: Path) -> str:
    """Return the folder of samples of a student with 128 rows, of which 125 are tokens."""
    engine = GenerationEngine.Config(max_new_tokens=6, temperature=1.0, samples=2)
    stage = GenerateStage(module=module_of(folder), data=Sums.Config(num=4), engine=engine, device="cpu")
    return str(Recipe(stages={"": stage}).make(folder / "samples", quiet=True).artefact)


def test_a_server_scores_as_this_process_does(tmp_path: Path) -> None:
    module, samples = module_of(tmp_path), samples_in(tmp_path)
    fields = {"module": module, "rollouts": samples, "top_k": 5, "precision": "float32", "device": "cpu", "seed": 3}
    here = Recipe(stages={"": ScoreStage(**fields, engine=GenerationEngine.Config())}).make(
        tmp_path / "here", quiet=True
    )
    teacher = built(module, seed=3).eval()
    with OpenAIServer(teacher.model, teacher.tokenizer) as server:
        engine = GenerationEngine.Config(base_url=server.base_url, model="tiny")
        there = Recipe(stages={"": ScoreStage(**fields, engine=engine)}).make(tmp_path / "there", quiet=True)
    for one, other in zip(read_scores(here.artefact), read_scores(there.artefact), strict=True):
        assert (one.key, one.sample, one.sequence) == (other.key, other.sample, other.sequence)
        # float32 both, one sequence at a time there: 1e-6 seen
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
        np.testing.assert_array_equal(one.top_ids, other.top_ids)
        np.testing.assert_allclose(one.top_logprobs, other.top_logprobs, atol=1e-5)
    assert read_manifest(there.artefact, "scores")["identity"]["vocabulary"] == 128  # the student's


def built(config: CausalLM.Config, seed: int) -> Any:
    seed_everything(seed, workers=True, verbose=False)
    return config.build()


def test_what_only_the_teachers_head_has_is_no_token(tmp_path: Path) -> None:
    """Would fail if the teacher's padding kept a share of the probability: it has more of it than of tokens."""
    samples = samples_in(tmp_path)
    padded = module_of(tmp_path, vocab_size=400)
    fields = {"rollouts": samples, "top_k": 128, "precision": "float32", "device": "cpu"}
    stage = ScoreStage(**fields, module=padded, engine=GenerationEngine.Config())
    made = Recipe(stages={"": stage}).make(tmp_path / "scores", quiet=True)
    for scores in read_scores(made.artefact):
        assert scores.top_ids.max() == 127
        np.testing.assert_allclose(np.exp(scores.top_logprobs).sum(1), 1, atol=1e-5)
    with pytest.raises(ValueError, match="top_k=129: the model has 128 tokens"):
        Recipe(stages={"": stage.derive(top_k=129)}).make(tmp_path / "more", quiet=True)


def test_a_full_disk_leaves_what_is_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    append = ShardStore.append

    def full(store: ShardStore, table: Any, number: int, statistics: Any) -> Any:
        if store.kind == "scores" and number == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(store, table, number, statistics)

    with monkeypatch.context() as patch:
        patch.setattr(ShardStore, "append", full)
        assert "No space left on device" in refusal(pipeline(), ["fit"], capsys)
    before = hashes(FIRST / "teach", "scores")
    assert len(before) == 1
    SeededEngine.calls.clear()
    main(pipeline(), ["fit"])
    assert len(SeededEngine.calls) == 2  # the first part's scores are not made again
    assert before.items() <= hashes(FIRST / "teach", "scores").items()


def test_broken_values_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(engine: Any, sequences: Any, *, top_k: int = 0, num_tokens: int | None = None) -> list[SequenceScores]:
        return [
            SequenceScores(
                np.full(len(ids) - 1, np.nan, np.float32),
                np.zeros((len(ids) - 1, top_k), np.int32),
                np.zeros((len(ids) - 1, top_k), np.float32),
            )
            for ids in sequences
        ]

    monkeypatch.setattr(SeededEngine, "score", broken)
    said = refusal(pipeline(), ["fit"], capsys)
    assert "the teacher's log-probabilities of its token 0 are not finite" in said
    assert not list((FIRST / "teach").rglob("*.parquet"))


def test_a_name_of_a_place_in_a_kept_tokenizer_is_not_followed(tmp_path: Path) -> None:
    samples = Path(samples_in(tmp_path))
    (samples / "tokenizer_files.json").write_text('{"../evil.py": "raise SystemExit"}')
    stage = ScoreStage(
        module=module_of(tmp_path), rollouts=str(samples), engine=GenerationEngine.Config(), device="cpu"
    )
    with pytest.raises(ValueError, match="holds no tokenizer that can be read"):
        Recipe(stages={"": stage}).make(tmp_path / "scores", quiet=True)
    assert not (tmp_path / "evil.py").exists()
