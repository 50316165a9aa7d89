"""TaskFile: the user's own tasks, and rows that are none."""

import json

import pytest

import datamodules
from datamodules.reasoning.files import TaskFile

ROWS = [
    {"prompt": "1 + 1?", "answer": 2},
    {"prompt": "1 + 1?", "answer": "2"},
    {"prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Half?"}], "answer": "1/2"},
    {"prompt": "Name two roots.", "answer": r"\{1, 2\}", "verifier": "math", "note": "not used"},
]


def write(folder, rows):
    path = folder / "tasks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_become_tasks_that_are_judged(tmp_path):
    data = datamodules.TaskFile.Config(source=write(tmp_path, ROWS), test_share=0, system_prompt="Count.").build()
    with pytest.warns(UserWarning, match="1 of 4 rows left out: their question is there already"):
        data.setup()
    tasks = data.tasks("train")
    assert [task.key for task in tasks] == ["row 0", "row 2", "row 3"]
    assert data.removed == {"train": 1, "test": 0}
    assert [message["role"] for message in tasks[1].messages] == ["system", "system", "user"]
    assert tasks[0].messages[-1]["content"].startswith("1 + 1?\n\nEnd with a line")
    answers = ("Answer: 2", "Answer: 50%", "Answer: {2, 1}")
    assert [data.verify(task, answer).value for task, answer in zip(tasks, answers, strict=True)] == [1, 1, 1]
    assert [data.verify(task, "Answer: 7").value for task in tasks] == [0, 0, 0]


def test_a_question_stays_in_its_split_when_rows_are_added(tmp_path):
    """Catches a split by row number."""
    rows = [{"prompt": f"{i} + {i}?", "answer": 2 * i} for i in range(60)]
    splits = []
    for part in (rows[20:], rows):
        data = TaskFile.Config(source=write(tmp_path, part), test_share=0.3).build()
        splits.append({str(task.messages): split for split in ("train", "test") for task in data.tasks(split)})
    assert splits[0].items() <= splits[1].items()
    assert 5 < list(splits[1].values()).count("test") < 31  # 18 of 60, 3.5 standard deviations


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x?"}, "'answer' holds no right answer but a NoneType"),
        ({"prompt": "x?", "answer": " "}, "'answer' holds no right answer"),
        ({"prompt": "x?", "answer": True}, "'answer' holds no right answer"),
        ({"prompt": "", "answer": "1"}, "'prompt' holds no question"),
        ({"prompt": [{"role": "user"}], "answer": "1"}, "'prompt' holds no question"),
        ({"prompt": [{"role": "assistant", "content": "x"}], "answer": "1"}, "the last one must be the user's"),
        ({"question": "x?", "answer": "1"}, "has no field 'prompt', only: question, answer"),
        ({"prompt": "x?", "answer": "1", "verifier": "mth"}, "unknown verifier 'mth'. Did you mean 'math'"),
        ({"prompt": "x?", "answer": "1", "verifier": "reasoning_gym"}, "needs 'task' in the reference"),
        ({"prompt": "x?", "answer": "two apples, 3 pears and 4 nuts"}, "'math' cannot use answer="),
        ([1], "has no field 'prompt'"),
    ],
)
def test_a_row_that_is_no_task_is_named(tmp_path, row, message):
    source = write(tmp_path, [ROWS[0], row])
    with pytest.raises(ValueError, match=rf"line 2.*{message}.*on_bad_row=skip"):
        TaskFile.Config(source=source, test_share=0).build().setup()
    data = TaskFile.Config(source=source, test_share=0, on_bad_row="skip").build()
    with pytest.warns(UserWarning, match="1 of 2 rows left out"):
        data.setup()
    assert len(data.tasks("train")) == 1


def test_a_file_without_tasks_and_a_missing_one(tmp_path):
    with pytest.raises(ValueError, match="none of 0 rows is a task for training"):
        TaskFile.Config(source=write(tmp_path, [])).build().setup()
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl"):
        TaskFile.Config(source=str(tmp_path / "gone.jsonl")).build().setup()
    with pytest.raises(ValueError, match="source='nowhere' is no name known here"):
        TaskFile.Config(source="nowhere").build()
