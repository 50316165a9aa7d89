"""RolloutData and DistillationData: filters with counts, batches by sample and position, several teachers, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from quiet_trainer import quiet_trainer
from stores import SAMPLED, VOCABULARY, sample, scores_of, write_rollouts, write_scores
from tiny_llm import tiny_module, word_tokenizer

from datamodules import DistillationData, RolloutData
from datamodules.rollouts.filters import RolloutFilters, difficulties, filtered, repeats
from pangu_modules.llm.generation.records import Rollout
from pangu_modules.llm.generation.store.score_rows import Packing


def data(folder: Path, rollouts: list[Rollout], **fields: Any) -> Any:
    """Return the datamodule of samples, and of scores of them unless `scores` is False."""
    scored = fields.pop("scores", True)
    fields |= {"rollouts": write_rollouts(folder / "rollouts", rollouts)}
    kind: Any = RolloutData
    if scored is True:
        scored = write_scores(folder / "scores", rollouts)
    if scored is not False:
        kind, fields["scores"] = DistillationData, scored
    return kind.Config(**{"batch_size": 4, **fields}).build()


def set_up(folder: Path, rollouts: list[Rollout], **fields: Any) -> Any:
    made = data(folder, rollouts, **fields)
    made.setup()
    return made


# Filters.


def test_each_filter_counts_what_it_leaves_out_once() -> None:
    good = [sample(number) for number in range(3)]
    bad = [
        replace(sample(10), text="  "),
        replace(sample(11), token_ids=(), policy_mask=(), logprobs=()),
        replace(sample(12), finish_reason="length"),
        sample(13, length=2),
        sample(14, length=30),
        replace(sample(15, length=12), token_ids=(7,) * 12),
        replace(sample(0), sample=1),
    ]
    kept, counts = filtered([*good, *bad], RolloutFilters(min_tokens=3, max_tokens=20))
    assert kept == good
    wanted = {"empty": 2, "truncated": 1, "too short": 1, "too long": 1, "repeating": 1, "duplicate": 1}
    assert {name: count for name, count in counts.items() if count} == wanted
    kept, _ = filtered(bad, RolloutFilters(keep_truncated=True, keep_duplicates=True, max_repeat_4gram=1.0))
    assert len(kept) == len(bad) - 2


def test_a_short_answer_does_not_repeat_itself() -> None:
    """Would fail if the only 4-gram of four tokens counted as all of them."""
    assert not repeats((1, 2, 3, 4), 0.3)
    assert not repeats((1, 2, 3, 4, 1, 2, 3, 4), 0.3)
    assert repeats((1, 2, 3, 4) * 3, 0.2)
    assert not repeats((), 0.3)


def test_right_answers_and_tasks_that_the_teacher_solves(tmp_path: Path) -> None:
    judged = [sample(number, rewards={"answer": float(number % 2)}) for number in range(8)]
    kept, counts = filtered(judged, RolloutFilters(verifier_filter="correct"))
    assert [one.key for one in kept] == ["task 1", "task 3", "task 5", "task 7"]
    assert counts["wrong"] == 4
    solved = write_rollouts(tmp_path / "teacher", judged[:2])
    made = set_up(
        tmp_path,
        judged,
        scores=False,
        test_share=0,
        filters={"verifier_filter": "teacher_can_solve", "teacher_rollouts": solved},
    )
    assert [one.key for one in made.train_dataset.sequences.rollouts] == ["task 1"]
    with pytest.raises(ValueError, match="nothing has judged these samples"):
        filtered([sample(0)], RolloutFilters(verifier_filter="correct"))
    with pytest.raises(ValidationError, match="give both or neither"):
        RolloutFilters(verifier_filter="teacher_can_solve")


def test_all_filtered_names_the_counts(tmp_path: Path) -> None:
    cut = [replace(sample(number), finish_reason="length") for number in range(3)]
    with pytest.raises(ValueError, match="filters removed every sample of 3: 3 truncated"):
        set_up(tmp_path, cut)
    with pytest.raises(ValueError, match="of 2: 2 of other labels"):
        set_up(tmp_path / "b", [sample(0), sample(1)], only={"mode": "none"})


def test_easy_tasks_come_first_in_each_epoch(tmp_path: Path) -> None:
    """Would fail if an order by difficulty left ties in one order, or sorted hard ones first."""
    rewards = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    judged = [sample(number, rewards={"answer": value}) for number, value in enumerate(rewards)]
    made = set_up(tmp_path, judged, order="easy_first", test_share=0)
    order = made.train_order(4)
    first, second = order(0).tolist(), order(1).tolist()
    assert sorted(first[:5]) == sorted(second[:5]) == [0, 2, 3, 5, 7]
    assert first != second
    assert order(0).tolist() == first
    assert difficulties([sample(0, logprobs=(-2.0,) * 6), sample(1, logprobs=None)]) == [2.0, 0.0]


# Batches.


@pytest.mark.parametrize("nucleus", [None, 0.6])
def test_entry_t_belongs_to_the_token_at_t_in_any_order(tmp_path: Path, nucleus: float | None) -> None:
    """Would fail if entries were shifted by one, or found by their place in the store."""
    rollouts = [sample(number, length=3 + number) for number in range(6)]
    rollouts[2] = replace(rollouts[2], policy_mask=(True, False, True, True, True))
    scores = write_scores(tmp_path / "scores", rollouts[::-1], packing=Packing(VOCABULARY, "float32", nucleus))
    made = set_up(tmp_path, rollouts, scores=scores, test_share=0)
    batch = made.train_dataset.__getitems__([4, 2, 0])
    assert batch["teacher_ids"].shape == (3, 9, 5)
    for row, number in enumerate((4, 2, 0)):
        own, wanted = rollouts[number], scores_of(rollouts[number], 5)
        ids = [*own.prompt_ids, *own.token_ids]
        assert batch["input_ids"][row, : len(ids)].tolist() == ids
        assert batch["attention_mask"][row].sum() == len(ids)
        for place in range(9):
            written = 2 <= place < len(ids) and own.policy_mask[place - 2]
            assert int(batch["labels"][row, place]) == (ids[place] if written else -100)
            if not written:
                continue
            there = torch.isfinite(batch["teacher_logprobs"][row, place])
            mass = np.exp(wanted.top_logprobs[place - 1].astype(np.float64))
            kept = 5 if nucleus is None else int(((mass.cumsum() - mass) < nucleus).sum())
            assert there.tolist() == [True] * kept + [False] * (5 - kept)
            assert batch["teacher_ids"][row, place][there].tolist() == wanted.top_ids[place - 1, :kept].tolist()
            assert (
                batch["teacher_logprobs"][row, place][there].tolist() == wanted.top_logprobs[place - 1, :kept].tolist()
            )
            assert float(batch["teacher_label_logprobs"][row, place]) == wanted.logprobs[place - 1]
            assert float(batch["sampled_logprobs"][row, place]) == -1


def test_prompts_are_held_out_as_a_whole(tmp_path: Path) -> None:
    rollouts = [sample(number, sample=again, length=5 + again) for number in range(10) for again in range(2)]
    made = set_up(tmp_path, rollouts, test_share=0.2)
    train, test = ({one.key for one in part.sequences.rollouts} for part in (made.train_dataset, made.test_dataset))
    assert len(test) == 2
    assert not train & test
    assert len(made.test_dataset) == 4


# Several teachers, and both kinds of samples.


def test_a_label_chooses_the_teacher(tmp_path: Path) -> None:
    rollouts = [sample(number, labels={"teacher_id": "ab"[number % 2]}) for number in range(6)]
    stores = [write_scores(tmp_path / name, rollouts, seed=seed, teacher=name) for seed, name in enumerate("ab")]
    made = set_up(tmp_path, rollouts, scores=stores, test_share=0)
    batch = made.train_dataset.__getitems__(range(6))
    for number, rollout in enumerate(rollouts):
        wanted = scores_of(rollout, 5, seed=number % 2)
        assert batch["teacher_ids"][number, 2].tolist() == wanted.top_ids[1].tolist()
    without = [replace(one, labels={}) for one in rollouts]
    with pytest.raises(ValueError, match="has the scores of another teacher already"):
        set_up(tmp_path / "c", without, scores=stores)


def test_samples_of_two_stores_with_equal_keys_keep_their_scores(tmp_path: Path) -> None:
    """Would fail if scores were found by key and number alone: references answer the same tasks as samples do."""
    own, references = [sample(0)], [replace(sample(7), key="task 0", logprobs=None)]
    folders = write_rollouts(tmp_path / "own", own), write_rollouts(tmp_path / "given", references, model="references")
    scored = [
        write_scores(tmp_path / "own scores", own),
        write_scores(tmp_path / "given scores", references, rollouts={**SAMPLED, "model": "references"}),
    ]
    made = DistillationData.Config(rollouts=folders, scores=scored, batch_size=1, test_share=0).build()
    made.setup()
    batch = made.train_dataset.__getitems__([0, 1])
    for row, rollout in enumerate([own[0], references[0]]):
        assert batch["teacher_ids"][row, 2].tolist() == scores_of(rollout, 5).top_ids[1].tolist()
    assert made.sampled_by == {"student", "references"}


# Refusals.


def test_scores_of_other_samples_are_refused(tmp_path: Path) -> None:
    rollouts = [sample(number) for number in range(4)]
    for number, (name, value) in enumerate({"model": "x", "template": "x", "sampling": {"temperature": 0.3}}.items()):
        other = write_scores(tmp_path / f"s{number}", rollouts, rollouts={**SAMPLED, name: value})
        with pytest.raises(ValueError, match=f"another {name} made them"):
            set_up(tmp_path / str(number), rollouts, scores=other)
    set_up(tmp_path / "allowed", rollouts, scores=other, allow_other=True)


def test_scores_of_other_tokens_are_refused(tmp_path: Path) -> None:
    rollouts = [sample(number) for number in range(4)]
    shorter = [replace(one, token_ids=one.token_ids[:-1], policy_mask=(True,) * 5) for one in rollouts]
    scores = write_scores(tmp_path / "scores", shorter)
    with pytest.raises(ValueError, match="sample 0 of 'task 0' has other tokens, or another number of them"):
        set_up(tmp_path, rollouts, scores=scores)


def test_samples_without_scores_are_counted(tmp_path: Path) -> None:
    rollouts = [sample(number) for number in range(4)]
    made = set_up(tmp_path, rollouts, scores=write_scores(tmp_path / "scores", rollouts[:3]), test_share=0)
    assert made.left_out["not scored"] == 1
    assert len(made.train_dataset) == 3


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no samples to train on; name a stage with data_from"):
        RolloutData.Config().build().setup()
    with pytest.raises(ValueError, match="no teacher's scores; name a stage of kind score"):
        DistillationData.Config(rollouts=write_rollouts(tmp_path / "a", [sample(0)])).build().setup()
    nameless = [replace(sample(0), token_ids=(), policy_mask=(), logprobs=None)]
    with pytest.raises(ValueError, match="has no token ids"):
        set_up(tmp_path / "b", nameless, scores=False)


def test_a_teacher_that_wants_what_the_student_never_writes_is_told_of(tmp_path: Path) -> None:
    rollouts = [replace(sample(number), token_ids=(5, 6, 5, 6, 5, 7)) for number in range(4)]
    rollouts = [replace(one, prompt_ids=(1, 2 + number)) for number, one in enumerate(rollouts)]
    with pytest.warns(
        UserWarning, match=r"at \d+\.\d % of the tokens the teacher's likeliest one is none that the student"
    ):
        set_up(tmp_path, rollouts)


def test_samples_of_another_template_or_too_long_ones_are_refused(tmp_path: Path) -> None:
    words = str(word_tokenizer(tmp_path / "words"))

    def fit(name: str, length: int = 6, **identity: Any) -> None:
        rollouts = [sample(number, length=length) for number in range(4)]
        folder = write_rollouts(tmp_path / name, rollouts, **identity)
        data = RolloutData.Config(rollouts=folder, batch_size=2, filters={"max_repeat_4gram": 1.0}).build()
        trainer = quiet_trainer(tmp_path / "run", [], max_steps=1, limit_val_batches=0)
        trainer.fit(tiny_module(tokenizer=words), datamodule=data)

    fit("same")
    with pytest.raises(ValueError, match="samples were made with another template than the model has"):
        fit("template", template="f" * 64)
    with pytest.raises(ValueError, match="samples were made with another tokenizer than the model has"):
        fit("tokenizer", tokenizer="f" * 64)
    with pytest.warns(UserWarning, match="data.sequence_length=72 is longer than the model's 64 positions"):
        fit("long", length=70)
