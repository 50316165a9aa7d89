"""Sums as tokens, against a writer that goes digit by digit through strings."""

from itertools import permutations

import numpy as np
import pytest

from datamodules.sums import columns
from datamodules.sums.columns import EOS, MISTAKE, Sums, draw_operands, draw_sums, is_held_out, prompts, references


def spoken(operands, orders, *, slip=-1, wrong=0, mended=False) -> str:
    """Return a thinking answer as text, one step after another."""
    text, carry, ends = "", 0, []
    for column, order in enumerate(orders):
        total = carry
        for step, operand in enumerate(order):
            digit = int(f"{operands[operand]:02d}"[1 - column])
            total += digit
            text += str(digit)
            if column * 3 + step == slip:
                off = (total + wrong) % 30
                text += f"{off:02d}!" if mended else ""
                total = total if mended else off
            text += f"{total:02d}"
        carry = total // 10
        text += str(carry)
        ends.append(total)
    return text + f"{ends[1]:02d}{ends[0] % 10}"


def written(sums: Sums, *, thinking=True, corrected=False) -> list[str]:
    count = len(sums.operands)
    rows = references(sums, np.full(count, thinking), corrected=np.full(count, corrected))
    assert all(row[-1] == EOS for row in rows)
    return ["".join(columns.TOKENS[token] for token in row[:-1]) for row in rows]


def some(count: int, *, slip_share: float = 0.0, style="random") -> Sums:
    generator = np.random.default_rng(3)
    return draw_sums(generator, draw_operands(generator, (0.6, 0.2, 0.2), count), style, slip_share)


def test_thinking_answers_equal_the_slow_writer_and_end_with_the_sum():
    sums = some(200)
    for row, text in enumerate(written(sums)):
        assert text == spoken(sums.operands[row], sums.orders[row])
        assert len(text) == 23
        assert int(text[-3:]) == sums.operands[row].sum()


@pytest.mark.parametrize("corrected", [False, True])
def test_slips_equal_the_slow_writer(corrected):
    sums = some(200, slip_share=1.0)
    right = 0
    for row, text in enumerate(written(sums, corrected=corrected)):
        slip, wrong = int(sums.slips[row]), int(sums.wrong[row])
        assert text == spoken(sums.operands[row], sums.orders[row], slip=slip, wrong=wrong, mended=corrected)
        assert text.count("!") == corrected
        right += int(text[-3:]) == sums.operands[row].sum()
    # a slip by a multiple of ten in the last step of the ones, say, still changes the carry: no wrong one is right
    assert right == (200 if corrected else 0)


def test_fast_answers_are_the_sum_and_with_a_slip_a_wrong_one():
    sums = some(100)
    assert [int(text) for text in written(sums, thinking=False)] == sums.operands.sum(1).tolist()
    slipped = some(100, slip_share=1.0)
    assert all(
        int(text) != total
        for text, total in zip(written(slipped, thinking=False), slipped.operands.sum(1), strict=True)
    )


def test_the_style_decides_the_orders():
    assert (some(50, style="left_to_right").orders == np.arange(3)).all()
    assert {tuple(order) for order in some(400).orders.reshape(-1, 3).tolist()} == set(permutations(range(3)))


def test_prompts_say_mode_and_operands():
    rows = prompts(np.array([[12, 3, 0]]), np.array([True]))
    assert [columns.TOKENS[token] for token in rows[0]] == ["<bos>", "<slow>", *"12+03+00="]
    assert columns.TOKENS[prompts(np.array([[12, 3, 0]]), np.array([False]))[0, 1]] == "<fast>"


def test_difficulty_has_the_shares_asked_for():
    drawn = draw_operands(np.random.default_rng(0), (0.45, 0.30, 0.25), 20_000)
    shares = [(drawn > 9).mean(), ((drawn > 0) & (drawn < 10)).mean(), (drawn == 0).mean()]
    assert shares == pytest.approx([0.45, 0.30, 0.25], abs=0.01)  # 60,000 numbers: a standard error of 0.002


def test_the_hash_holds_out_its_share_of_all_sums_whatever_their_size():
    sums = np.stack(np.meshgrid(*[np.arange(100)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    held = is_held_out(sums, 0.1)
    assert held.mean() == pytest.approx(0.1, abs=0.002)
    assert held[(sums < 10).all(1)].mean() == pytest.approx(0.1, abs=0.03)
    assert (is_held_out(sums[::-1], 0.1) == held[::-1]).all()


def test_a_mark_stands_behind_the_wrong_total():
    sums = Sums(np.array([[12, 34, 5]]), np.array([[[0, 1, 2], [0, 1, 2]]]), np.array([1]), np.array([4]))
    (row,) = references(sums, np.array([True]), corrected=np.array([True]))
    assert row.tolist()[:10] == [2, 0, 2, 4, 1, 0, MISTAKE, 0, 6, 5]
