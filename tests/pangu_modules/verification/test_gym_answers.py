"""The verifier "reasoning_gym": full marks alone count, and no answer is evaluated that could do anything."""

import ast
import inspect
from pathlib import Path

import pytest

from pangu_modules.verification import gym_answers
from pangu_modules.verification.gym_answers import FORMULAS, LITERALS, dataset_of, harmless, verify


def reference(task, **arguments):
    arguments = {"seed": 1, "size": 10, **arguments}
    item = gym_answers.dataset_of(task, gym_answers.json.dumps(arguments, sort_keys=True))[0]
    return {"task": task, "arguments": arguments, "index": 0, "answer": str(item["answer"])}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Answer: {}", 1),
        ("The answer is **{}**.", 1),
        ("4 + 5 - 6 = {}", 1),
        ("I get {} in the end", 1),
        ("Answer: {}0", 0),
        ("Answer: {} or 43", 0),  # reasoning-gym gives a part of a mark for it
        ("Answer: 43, 44, {}", 0),
        ("", 0),
    ],
)
def test_full_marks_alone_count(text, value):
    task = reference("chain_sum")
    assert verify(text.replace("{}", task["answer"]), task).value == value


def test_another_item_than_the_one_written_down_is_an_error():
    with pytest.raises(ValueError, match="makes another item 0 of chain_sum"):
        verify("Answer: 1", {**reference("chain_sum"), "answer": "123456"})


ATTACKS = (
    "__import__('pathlib').Path('{}').touch()",
    "[__import__('pathlib').Path('{}').touch()]",
    'sqrt(\'__import__("pathlib").Path("{}").touch()\')',
    "(lambda: __import__('pathlib').Path('{}').touch())()",
    "[each for each in [open('{}', 'w')]]",
    "f\"{{open('{}', 'w')}}\"",
    "open('{}', 'w')",
    "x!; open('{}', 'w')",
    " open('{}', 'w')",
)


@pytest.mark.parametrize("task", LITERALS + FORMULAS)
def test_no_answer_is_executed(task, tmp_path):
    """Catches the call of score_answer without a look at the answer: the first attack then makes the file."""
    for number, attack in enumerate(ATTACKS):
        target = tmp_path / str(number)
        assert verify(f"<answer>{attack.format(target)}</answer>", reference(task)).value == 0
        assert not target.exists(), attack


def test_the_attacks_would_work(tmp_path):
    arguments = reference("countdown")
    dataset = dataset_of("countdown", gym_answers.json.dumps(arguments["arguments"], sort_keys=True))
    dataset.score_answer(ATTACKS[0].format(tmp_path / "made"), dataset[0])
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("task", "text", "is_harmless"),
    [
        ("countdown", "(3 + 4)*5 - 1/2", True),
        ("simple_integration", "x**2/2 + sin(3*x) + C", True),
        ("simple_integration", "2x", False),  # parse_expr rewrites what it cannot parse
        ("countdown", "exit()", False),
        ("countdown", "(1).real", False),
        ("n_queens", "[['_', 'Q'], ['Q', '_']]", True),
        ("n_queens", "_ Q\nQ _", True),
        ("string_insertion", "ABCDE", True),
        ("chain_sum", "exit()", True),  # it is compared, not evaluated
    ],
)
def test_what_may_be_evaluated(task, text, is_harmless):
    assert harmless(text, task) == is_harmless


def test_right_answers_of_tasks_that_evaluate_keep_full_marks():
    for task in LITERALS + FORMULAS:
        expected = reference(task)
        score = verify(f"<answer>{expected['answer']}</answer>", expected)
        assert score.value == 1, (task, score.reason)


def calls_from(dataset):
    """Return the names of all that ``score_answer`` calls, and that the functions of its file call in turn."""
    tree = ast.parse(Path(inspect.getsourcefile(dataset)).read_text())
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    names, left = set(), ["score_answer"]
    while left:
        function = functions.get(left.pop())
        called = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)] if function else []
        new = {call.id if isinstance(call, ast.Name) else getattr(call, "attr", "") for call in called} - names
        names |= new
        left += new
    return names


def test_every_task_that_evaluates_is_known():
    """Fails when a new reasoning-gym has another task whose scoring evaluates text."""
    from reasoning_gym.factory import DATASETS

    evaluating = {"eval", "exec", "parse_expr", "sympify", "compile", "literal_eval"}
    found = {name for name, (dataset, _) in DATASETS.items() if calls_from(dataset) & evaluating}
    # these evaluate their own question or answer, never the model's, or have a parser of their own by that name
    innocent = {"bitwise_arithmetic", "number_sorting", "propositional_logic"}
    assert found - innocent == set(LITERALS + FORMULAS)
