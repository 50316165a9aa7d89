"""ColumnSums: rows, tasks, the judge and the tokenizer agree with each other."""

import pytest
import torch
from pydantic import ValidationError

from datamodules import ColumnSums
from pangu_modules.common.batches import IGNORE_INDEX


def sums(**fields) -> ColumnSums:
    data = ColumnSums.Config(**{"num_train": 300, "num_tasks": 40, "num_test": 20, **fields}).build()
    data.setup("fit")
    return data


def prompts_in(data: ColumnSums) -> set[tuple[int, ...]]:
    rows = data.train_dataset.input_ids[:, :11]
    return {tuple(row[2:]) for row in rows.tolist()}


def test_the_template_writes_the_prompts_of_the_rows():
    data = sums()
    for index, task in enumerate(data.tasks("test")):
        asked = data.tokenizer.apply_chat_template(task.messages, add_generation_prompt=True, return_dict=False)
        row = data.test_dataset[index]
        assert asked == row["input_ids"][:11].tolist()
        answer = row["input_ids"][11:]
        assert (row["labels"][11:] == answer).all()
        assert (row["labels"][:11] == IGNORE_INDEX).all()
        assert data.verify(task, data.tokenizer.decode(answer, skip_special_tokens=True)).value == 1


def test_a_whole_conversation_is_prompt_and_answer():
    data = sums()
    task = data.tasks("train")[0]
    answer = data.tokenizer.decode(data.reference(task), skip_special_tokens=True)
    messages = [*task.messages, {"role": "assistant", "content": answer}]
    ids = data.tokenizer.apply_chat_template(messages, return_dict=False)
    assert ids[11:] == data.reference(task)


def test_a_mode_asked_for_by_the_templates_option_is_the_mode_of_the_tag():
    tokenizer, messages = sums().tokenizer, [{"role": "user", "content": "01+02+03"}]
    by_option = tokenizer.apply_chat_template(messages, enable_thinking=False, return_dict=False)
    tagged = [{"role": "user", "content": "01+02+03 /no_think"}]
    assert by_option == tokenizer.apply_chat_template(tagged, return_dict=False)


@pytest.mark.parametrize(
    ("mode", "text", "value"),
    [("fast", "046", 1), ("fast", "047", 0), ("fast", "46", 0), ("fast", "1046", 0), ("thinking", "046", 0)],
)
def test_answers_are_judged_by_their_end_and_their_mode(mode, text, value):
    data = sums()
    task = next(each for each in data.tasks("test") if each.labels["mode"] == mode)
    text = text.replace("046", task.reference["answer"]).replace("047", f"{int(task.reference['answer']) + 1:03d}")
    assert data.verify(task, text).value == value


def test_train_and_test_share_no_sum_and_tests_are_the_same_for_all_seeds():
    first, second = sums(seed=0), sums(seed=1)
    test = {tuple(row[2:11]) for row in first.test_dataset.input_ids.tolist()}
    assert not test & (prompts_in(first) | prompts_in(second))
    asked = {task.key.split(" ")[0] for task in first.tasks("train")}
    assert not asked & {task.key.split(" ")[0] for task in first.tasks("test")}
    assert [task.key for task in first.tasks("test")] == [task.key for task in second.tasks("test")]
    assert [task.key for task in first.tasks("train")] != [task.key for task in second.tasks("train")]
    assert len({task.key for task in first.tasks("train")}) == 40


def test_each_test_question_comes_in_every_mode_and_training_questions_in_turn():
    data = sums()
    assert [task.labels["mode"] for task in data.tasks("test")] == ["thinking", "fast"] * 20
    assert [task.labels["mode"] for task in data.tasks("train")] == ["thinking", "fast"] * 20
    assert {task.labels["mode"] for task in sums(modes=("fast",)).tasks("train")} == {"fast"}


def test_thinking_share_wrong_share_and_corrected_share_are_those_of_the_rows():
    data = sums(num_train=2000, thinking_share=0.25, wrong_share=0.3, corrected_share=0.2)
    rows = data.train_dataset
    thinking = rows.input_ids[:, 1] == 13
    assert thinking.float().mean() == pytest.approx(0.25, abs=0.03)  # 2000 rows: a standard error of 0.01
    marked = (rows.input_ids == 12).any(1)
    assert marked[thinking].float().mean() == pytest.approx(0.2, abs=0.06)  # 500 rows: 0.018
    assert not marked[~thinking].any()
    numbers = rows.input_ids[:, [2, 3, 5, 6, 8, 9]] * torch.tensor([10, 1] * 3)
    answers = rows.input_ids.gather(1, rows.lengths[:, None] + torch.tensor([-4, -3, -2]))
    wrong = (answers * torch.tensor([100, 10, 1])).sum(1) != numbers.sum(1)
    assert wrong[thinking].float().mean() == pytest.approx(0.3, abs=0.07)


def test_batches_are_as_long_as_their_longest_row():
    batch = next(iter(sums(thinking_share=0.0, batch_size=8).train_dataloader()))
    assert batch["input_ids"].shape == batch["labels"].shape == (8, 15)
    assert next(iter(sums(thinking_share=1.0, batch_size=8).train_dataloader()))["input_ids"].shape == (8, 35)


def test_bad_values_are_refused():
    with pytest.raises(ValidationError, match="add up to 1"):
        ColumnSums.Config(operands=(0.5, 0.5, 0.5))
    with pytest.raises(ValidationError, match="one slip at most"):
        ColumnSums.Config(wrong_share=0.7, corrected_share=0.7)
    with pytest.raises(ValidationError, match="name each once"):
        ColumnSums.Config(modes=("fast", "fast"))
    data = ColumnSums.Config(num_test=300, operands=(0.0, 0.0, 1.0)).build()
    with pytest.raises(ValueError, match=r"num_test=300: only .* different sums"):
        data.tasks("test")
    with pytest.raises(ValueError, match="'train' and 'test'"):
        data.tasks("val")
