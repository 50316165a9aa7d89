"""Where the answer of a completion stands."""

import pytest

from pangu_modules.verification.answers import after_thinking, final_answer

MARKS = (("<think>", "</think>"), ("[unused16]", "[unused17]"))


@pytest.mark.parametrize(
    ("text", "answer", "stated"),
    [
        ("<answer>42</answer> and so on", "42", True),
        ("<answer> 42", "42", True),  # the stop string took the closing tag
        (r"thus \boxed{\frac{1}{2}}.", r"\frac{1}{2}", True),  # catches a search up to the first brace
        ("Answer: 42\nBye.", "42", True),
        ("**Answer**: 42", "42", True),
        ("**Answer:**\n\n42", "42", True),
        ("The final answer is 42.", "42.", True),
        (r"The answer is \boxed{42}", "42", True),
        (r"<answer>\boxed{42}</answer>", "42", True),
        ("5 + 7 = 12\n#### 12", "12", True),
        ("\\boxed{1}\nAnswer: 2", "2", True),  # catches boxes that come before words whatever their order
        (r"Answer: 2. Checked: \boxed{1}", "1", True),
        (r"\boxed{1} or \boxed{2}", "1 or 2", True),
        (r"\boxed{1}, \boxed{2}", "1, 2", True),
        (r"\boxed{1} is wrong. \boxed{2}", "2", True),
        ("First line\nthe last one \n", "the last one", False),
        ("An unfinished box \\boxed{42", "An unfinished box \\boxed{42", False),
    ],
)
def test_the_answer_is_the_last_statement_or_the_last_line(text, answer, stated):
    found = final_answer(text)
    assert (found.text, found.stated) == (answer, stated)


@pytest.mark.parametrize("text", ["", " \n\t", "Answer:", "<answer></answer>", r"Answer: 1 \boxed{}"])
def test_an_empty_answer_is_none(text):
    assert final_answer(text) is None


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("no thought", "no thought"),
        ("<think>41?</think>42", "42"),
        ("41?</think>42", "42"),  # the prompt began the thought
        ("<think>1</think>2<think>3</think>4", "4"),
        ("[unused16]41[unused17]42", "42"),
        ("<think>Answer: 42", None),  # catches rewarding the answer inside a thought
        ("1</think>2<think>Answer: 42", None),
    ],
)
def test_thoughts_are_not_searched(text, rest):
    assert after_thinking(text, MARKS) == rest
