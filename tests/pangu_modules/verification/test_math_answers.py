"""The verifier "math": right answers in many spellings score 1, near misses 0."""

import logging
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_modules.verification.math_answers import prepare, reference_of, verify
from pangu_modules.verification.numerals import numeral, numerals, plain_characters

RIGHT = [
    (r"\boxed{\frac12}", "1/2"),
    ("Answer: 0.5", "1/2"),
    ("Answer: .50", "1/2"),
    ("The answer is 50%.", "1/2"),
    (r"so $\boxed{50\%}$", "0.5"),
    ("Answer: x = 1/2", r"\frac{1}{2}"),
    ("<answer>½</answer>", "1/2"),
    (r"The final answer is $\dfrac{1}{2}$.", "0.5"),
    ("Answer: 1 1/2", "3/2"),
    (r"\boxed{1\frac{1}{2}}", "1.5"),
    ("Answer: 1,234", "1234"),
    (r"Answer: 1{,}234", "1234"),
    (r"\boxed{1\,234}", "1234"),
    ("Answer: 1234.00", "1,234"),
    ("Answer: $1,234", "1234"),
    ("Answer: 90°", "90"),
    (r"\boxed{90^\circ}", "90"),
    ("Answer: 90 degrees", r"90^{\circ}"),
    ("**Answer:** **42**", "42"),
    ("**Answer: 42.**", "42"),
    ("The answer is 42 apples.", "42"),
    ("Answer: 42 km", "42 kilometers"),
    ("Answer: there are 42 of them", "42"),
    ("First 40 + 2 = 42.\nSo in total that makes 42", "42"),
    ("Answer: 40 + 2 = 42", "42"),
    ("42", "42"),
    ("Answer: +42", "042"),
    ("Answer: \N{MINUS SIGN}42", "-42"),
    ("Answer: \N{FULLWIDTH DIGIT FOUR}\N{FULLWIDTH DIGIT TWO}", "42"),
    ("Answer: 1e3", "1000"),
    (r"\boxed{1 \times 10^3}", "1000"),
    (r"Answer: \{2, 1\}", "{1, 2}"),
    ("Answer: {1,2}", r"\{1,2\}"),
    (r"\boxed{x = 1 \text{ or } x = 2}", "x = 2 or x = 1"),
    (r"\boxed{[0, 1)}", "[0,1)"),
    (r"\boxed{\left[0, 1\right)}", "[0,1)"),
    (r"\boxed{(1, 2)}", "(1,2)"),
    (r"\boxed{2\sqrt2}", r"\sqrt{8}"),
    ("Answer: 1 + x", "x+1"),
    ("Answer: 2*x**2", "2x^2"),
    (r"Answer: \pi/2", "pi/2"),
    ("Answer: 0.333333", "1/3"),
    ("Answer:\n42", "42"),
    (r"\boxed{\text{42}}", "42"),
    ("Answer: 41. Wait, no: 42", "42"),
    ("42, no, 43", "43"),
    (r"\boxed{41} is wrong, I find \boxed{42}", "42"),
    ("Answer: 41\nLet me check. Answer: 42", "42"),
    ("Answer: 42. The other root, 7, is negative.", "42"),
    ("Answer: 42 because 40 + 2 = 42", "42"),
    ("Answer: 1/2 or 0.5", "1/2"),
    ("The answer is \\boxed{42}.</s>", "42"),
    ("Answer: Paris.", "paris"),
    ("<answer>42", "42"),
    ("Answer: \\(42\\)", "42"),
    (r"\[ \boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}} \]", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ("Answer: 5 - 7 = -2", "-2"),
]
WRONG = [
    ("Answer: 43", "42"),
    ("Answer: 41", "42"),
    ("Answer: -42", "42"),
    ("Answer: 42", "-42"),
    ("Answer: 24", "42"),
    ("Answer: 1243", "1234"),
    ("Answer: 123", "1234"),
    ("Answer: 12345", "1234"),
    ("Answer: 1,23", "123"),
    ("Answer: 4.2", "42"),
    ("Answer: 0.1234567", "0.1234568"),
    ("Answer: 0.33", "1/3"),
    ("Answer: 2/1", "1/2"),
    ("Answer: 50", "1/2"),
    ("Answer: 0.5%", "1/2"),
    ("Answer: 42 m", "42 km"),
    ("Answer: 42 kilograms", "42 grams"),
    ("Answer: $42", "42 cents"),
    ("Answer: 42 or 43", "42"),
    ("Answer: 42 or 43", "43"),
    (r"\boxed{42} or \boxed{43}", "43"),
    (r"\boxed{42 \text{ or } 43}", "42"),
    ("Answer: either 42 or maybe 43", "43"),
    ("between 42 and 43", "43"),
    ("Answer: 42, 43", "42"),
    ("Answer: 42 and 43", "43"),
    ("Answer: 42 or 3 apples and 4 pears", "42"),  # one side of the "or" is no single value
    ("42, no, 43", "42"),
    (r"I first had \boxed{42}, but it is \boxed{43}", "42"),
    ("Answer: 42\nThe answer is unknown", "42"),
    ("Answer: {1, 2, 3}", "{1, 2}"),
    ("Answer: {1}", "{1, 2}"),
    (r"\boxed{(0, 1)}", "[0,1]"),
    (r"\boxed{(2, 1)}", "(1,2)"),
    ("Answer: x = 1", "x = 1 or x = 2"),
    ("Answer: x + 2", "x + 1"),
    ("Answer: y", "x"),
    (r"\boxed{\sqrt{7}}", r"\sqrt{8}"),
    ("Answer: silent", "listen"),
    ("", "42"),
    ("   \n", "42"),
    ("Answer:", "42"),
    (r"\boxed{}", "42"),
    (r"\boxed{42", "43"),
    ("I do not know", "42"),
    ("nan", "42"),
    ("NaN", "0"),
    ("inf", "42"),
    ("Answer: 1/0", "42"),
    ("x42y", "42"),
]
WRITERS = (str, "{:,}".format, "{:.2f}".format, "{}.".format, "**{}**".format, "${}$".format, "\\boxed{{{}}}".format)


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    logging.disable(logging.CRITICAL)  # math-verify says of each answer that it has no time-out
    prepare()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(("text", "right"), RIGHT)
def test_right_answers_score_one(text, right):
    score = verify(text, {"answer": right})
    assert score.value == 1, score.reason


@pytest.mark.parametrize(("text", "right"), WRONG)
def test_near_misses_score_zero(text, right):
    score = verify(text, {"answer": right})
    assert score.value == 0
    assert score.reason


@settings(max_examples=100, deadline=None)
@given(value=st.integers(-(10**9), 10**9), other=st.integers(-(10**9), 10**9), writer=st.sampled_from(WRITERS))
def test_a_number_scores_exactly_if_it_is_the_right_one(value, other, writer):
    assert verify(f"So 17 + 4 gives it.\nAnswer: {writer(value)}", {"answer": str(value)}).value == 1
    assert verify(f"Answer: {writer(other)}", {"answer": str(value)}).value == (value == other)
    # hedging: catches a search that takes the first or the last number, or any
    assert verify(f"Answer: {writer(value)} or {writer(other)}", {"answer": str(value)}).value == (value == other)


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=60), stated=st.booleans())
def test_no_text_raises_or_is_right_by_chance(text, stated):
    assert verify(f"Answer: {text}" if stated else text, {"answer": "271828182845"}).value == 0


@pytest.mark.parametrize("right", ["", "   ", "3 apples and 4 pears", r"\frac{1}{", "?"])
def test_a_reference_that_says_nothing_is_an_error(right):
    with pytest.raises(ValueError, match="is no single value, expression, set or word"):
        reference_of(right)


def test_the_reference_of_gsm8k_is_what_stands_behind_its_mark():
    assert verify("Answer: 42", {"answer": "She has 40 + 2 = <<40+2=42>>42.\n#### 42"}).value == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.5", Fraction(2469, 2)),
        ("1 234", 1234),
        (r"\dfrac{-1}{2}", Fraction(-1, 2)),
        (r"-\frac12", Fraction(-1, 2)),
        ("1½", Fraction(3, 2)),
        ("٤٢", 42),
        ("-3e2", -300),
        (r"12.5\%", Fraction(1, 8)),
        ("1,23", None),
        ("1/0", None),
        ("1e9999", None),  # it would be written out
        ("x", None),
    ],
)
def test_numerals_are_read_exactly(text, value):
    found = numeral(plain_characters(text))
    assert (found and found.value) == value


def test_numerals_inside_a_text():
    assert numerals("10-3 = 7, v1.2 of X42 costs -5.") == ["10", "3", "7", "-5."]
