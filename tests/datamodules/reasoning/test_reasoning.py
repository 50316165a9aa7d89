"""ReasoningTasks: disjoint splits, levels, a hash, and answers that are judged."""

import json

import pytest
from lightning.pytorch import Trainer
from pydantic import ValidationError
from toys import ToyModule

import datamodules
from datamodules.reasoning.gym import ReasoningTasks, seed_of
from pangu_modules.common.tasks import Task

SMALL = {"tasks": {"chain_sum": (0, 2), "spell_backward": (1,)}, "num_train": 40, "num_test": 11}


@pytest.fixture(scope="module")
def data():
    data = ReasoningTasks.Config(**SMALL).build()
    data.setup()
    return data


def question(task):
    return task.messages[-1]["content"]


def test_it_is_public_and_its_configuration_survives_storage():
    config = datamodules.ReasoningTasks.Config(**SMALL)
    assert type(config).model_validate(json.loads(json.dumps(config.plain()))) == config


def test_tasks_are_shared_out_in_turn(data):
    labels = [(task.labels["task"], task.labels["level"]) for task in data.tasks("test")]
    turn = [("chain_sum", "0"), ("chain_sum", "2"), ("spell_backward", "1")]
    assert labels == (turn * 4)[:11]
    assert len(data.tasks("train")) == 40
    assert len({task.key for split in ("train", "test") for task in data.tasks(split)}) == 51


def test_no_question_is_twice_and_what_was_left_out_is_counted():
    """Catches nearby seeds, whose items are the same but for one, and a test set that is drawn last."""
    data = ReasoningTasks.Config(tasks={"chain_sum": (0, 1)}, num_train=100, num_test=20).build()
    questions = [question(task) for split in ("train", "test") for task in data.tasks(split)]
    assert len(set(questions)) == len(questions) == 120
    assert data.removed["train"] > 0
    more = ReasoningTasks.Config(tasks={"chain_sum": (0, 1)}, num_train=10, num_test=20).build()
    assert more.tasks("test") == data.tasks("test")  # whatever the size of the training split


def test_right_answers_score_one_and_others_zero(data):
    for split in ("train", "test"):
        for task in data.tasks(split):
            right = task.reference["answer"]
            assert data.verify(task, f"Let me see.\n**Answer:** {right}.").value == 1
            assert data.verify(task, f"Answer: {right}7").value == 0
    assert data.verification.counts == {"right": 51, "wrong": 51}


def test_levels_are_those_of_the_curriculum(data):
    hard = [task for task in data.tasks("train") if task.labels == {"task": "chain_sum", "level": "2"}]
    assert {task.reference["arguments"]["max_terms"] for task in hard} == {4}
    digits = [len(word) for task in hard for word in question(task).split("\n")[0].split() if word.isdigit()]
    assert max(digits) == 3  # catches every task at the easiest level


def test_the_question_carries_instruction_and_system_message():
    data = ReasoningTasks.Config(**SMALL, instruction="Say it.", system_prompt="Be brief.").build()
    messages = data.tasks("test")[0].messages
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[0]["content"] == "Be brief."
    assert messages[1]["content"].endswith("=\n\nSay it.")


def test_the_hash_is_of_everything_and_checked(data):
    expected = data.fingerprint()
    assert ReasoningTasks.Config(**SMALL, expected_hash=expected[:12]).build().fingerprint() == expected
    for change in ({"seed": 1}, {"num_test": 12}, {"instruction": "?"}, {"tasks": {"chain_sum": (0, 2)}}):
        other = ReasoningTasks.Config(**{**SMALL, **change}, expected_hash=expected[:12]).build()
        with pytest.raises(ValueError, match=rf"expected_hash='{expected[:12]}': the tasks are others"):
            other.setup()


def test_a_generator_that_has_changed_is_noticed(data, monkeypatch):
    """Catches a hash of settings alone."""
    from reasoning_gym.arithmetic.chain_sum import ChainSumDataset

    original = ChainSumDataset.__getitem__
    monkeypatch.setattr(
        ChainSumDataset, "__getitem__", lambda self, i: {**original(self, i), "question": f"{original(self, i)} ?"}
    )
    with pytest.raises(ValueError, match="the tasks are others"):
        ReasoningTasks.Config(**SMALL, expected_hash=data.fingerprint()).build().setup()


def test_the_tasks_of_this_version_of_reasoning_gym(data):
    """Fails when another version generates other tasks: then stored data sets of tasks are of the past."""
    assert question(data.tasks("test")[0]).startswith("State the final answer to the following arithmetic problem:")
    assert seed_of(0, "test", "chain_sum", 0) != seed_of(0, "train", "chain_sum", 0)


def test_a_generator_that_makes_other_items_in_every_process_is_refused():
    """polynomial_multiplication goes through sets of words, whose order Python draws anew for each process."""
    data = ReasoningTasks.Config(tasks={"polynomial_multiplication": (1,)}, num_train=3, num_test=3).build()
    with pytest.raises(ValueError, match="makes another item 0 of polynomial_multiplication"):
        data.setup()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tasks": {}}, "name at least one generator"),
        ({"tasks": {"chain_sum": ()}}, "at least one level"),
        ({"tasks": {"chain_sum": (1, 1)}}, "'chain_sum' has a level twice"),
        ({"tasks": {"chain_sum": (-1,)}}, "greater than or equal to 0"),
        ({"arguments": {"gcd": {"min_terms": 2}}}, "arguments: no generator 'gcd' in tasks"),
        ({"arguments": {"chain_sum": 3}}, "'chain_sum' wants names and values"),
        ({"num_test": 0}, "num_test"),
    ],
)
def test_bad_values_are_refused(config, message):
    with pytest.raises(ValidationError, match=message):
        ReasoningTasks.Config(**config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tasks": {"chain_sums": (0,)}}, "no generator 'chain_sums'. Did you mean 'chain_sum'"),
        ({"tasks": {"chain_sum": (99,)}}, "'chain_sum' has the levels 0 to 10, got 99"),
        ({"tasks": {"gsm_symbolic": (1,)}}, "'gsm_symbolic' has no levels: write 0"),
        ({"tasks": {"coin_flip": (0,)}}, "'coin_flip' at level 0 has only 8 new questions for test in 2000 draws"),
        (
            {"tasks": {"chain_sum": (0,)}, "arguments": {"chain_sum": {"min_term": 1}}},
            "'chain_sum' at level 0 with arguments .*min_term",
        ),
        (
            {"tasks": {"chain_sum": (0,)}, "arguments": {"chain_sum": {"min_digits": 5}}},
            "max_digits must be >= min_digits",
        ),
    ],
)
def test_what_reasoning_gym_does_not_have_is_refused_in_setup(config, message):
    with pytest.raises(ValueError, match=message):
        ReasoningTasks.Config(**config).build().setup()


def test_training_on_tasks_is_refused_with_the_remedy(tmp_path):
    data = ReasoningTasks.Config(**SMALL).build()
    trainer = Trainer(default_root_dir=tmp_path, logger=False, enable_checkpointing=False, max_steps=1)
    with pytest.raises(ValueError, match="no batches to train on: generate and judge answers in a stage"):
        trainer.fit(ToyModule.Config().build(features=4), datamodule=data)


def test_a_task_of_another_split_is_refused(data):
    with pytest.raises(ValueError, match="split='val': tasks are in 'test' and 'train'"):
        data.tasks("val")


def test_an_unknown_label_is_refused(data):
    with pytest.raises(ValueError, match="Did you mean 'reasoning_gym'"):
        data.verify(Task("x", [], "reasoning_gim"), "")
