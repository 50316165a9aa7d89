"""Sums of three numbers below 100 as tokens: prompts, and reference answers that think column by column.

A prompt is ``<bos> <slow> 1 2 + 3 4 + 0 5 =``, 11 tokens, in which the second one is the mode. A fast answer is the sum
in three digits and ``<eos>``. A thinking answer goes through ones and tens before that: for each operand, in some
order, its digit and the running total in two digits, and after the three of them the carry; 24 tokens in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Mode = Literal["thinking", "fast"]
Style = Literal["random", "left_to_right"]
MODES: tuple[Mode, ...] = ("thinking", "fast")
TOKENS = (*"0123456789", "+", "=", "!", "<slow>", "<fast>", "<bos>", "<eos>", "<pad>")
PLUS, EQUALS, MISTAKE, SLOW, FAST, BOS, EOS, PAD = range(10, len(TOKENS))
PROMPT_TOKENS = 11
ANSWER_TOKENS = 4  # the sum and the end
THOUGHT_TOKENS = 20
CORRECTION_TOKENS = 3  # a wrong total, and the mark behind it
LONGEST = PROMPT_TOKENS + THOUGHT_TOKENS + CORRECTION_TOKENS + ANSWER_TOKENS
OPERANDS, COLUMNS = 3, 2
HIGHEST_SLIP = 30  # wrong totals are below it, as right ones are


@dataclass(frozen=True)
class Sums:
    """Several sums with one way each to get to them.

    Attributes:
        operands: (n, 3) int64, each from 0 to 99.
        orders: (n, 2, 3) int64, in which order each column's digits are added, a permutation of 0, 1, 2.
        slips: (n,) int64, the step at which the running total is wrong, 0 to 5; -1 for none.
        wrong: (n,) int64, by how much that total is off, before it is taken modulo 30; 1 to 29.
    """

    operands: np.ndarray
    orders: np.ndarray
    slips: np.ndarray
    wrong: np.ndarray

    def totals(self, *, with_slips: bool) -> np.ndarray:
        """Return the running totals, (n, 2, 3): of the ones, and of the tens beginning with the carry.

        Args:
            with_slips: whether the total at the step of a slip is wrong, and all that follows from it.
        """
        digits = np.stack([self.operands % 10, self.operands // 10], axis=1)
        added = np.take_along_axis(digits, self.orders, axis=2)
        totals = np.zeros_like(added)
        running = np.zeros(len(added), dtype=np.int64)
        for column in range(COLUMNS):
            running = running // 10  # the carry
            for step in range(OPERANDS):
                running = running + added[:, column, step]
                if with_slips:
                    here = self.slips == column * OPERANDS + step
                    running = np.where(here, (running + self.wrong) % HIGHEST_SLIP, running)
                totals[:, column, step] = running
        return totals

    def thoughts(self, totals: np.ndarray) -> np.ndarray:
        """Return the tokens of the columns with these totals, (n, 20)."""
        digits = np.stack([self.operands % 10, self.operands // 10], axis=1)
        added = np.take_along_axis(digits, self.orders, axis=2)
        steps = np.stack([added, totals // 10, totals % 10], axis=3).reshape(len(added), COLUMNS, 3 * OPERANDS)
        carries = totals[:, :, -1:] // 10
        return np.concatenate([steps, carries], axis=2).reshape(len(added), THOUGHT_TOKENS)


def answers(totals: np.ndarray) -> np.ndarray:
    """Return the tokens of the sums that follow from running totals, with the end, (n, 4)."""
    ones, tens = totals[:, 0, -1], totals[:, 1, -1]
    return np.stack([tens // 10, tens % 10, ones % 10, np.full_like(ones, EOS)], axis=1)


def prompts(operands: np.ndarray, thinking: np.ndarray) -> np.ndarray:
    """Return the tokens of prompts, (n, 11).

    Args:
        operands: (n, 3), each from 0 to 99.
        thinking: (n,) bool, the mode.
    """
    rows = np.full((len(operands), PROMPT_TOKENS), PLUS)
    rows[:, 0], rows[:, 1], rows[:, -1] = BOS, np.where(thinking, SLOW, FAST), EQUALS
    rows[:, 2::3], rows[:, 3::3] = operands // 10, operands % 10
    return rows


def references(sums: Sums, thinking: np.ndarray, *, corrected: np.ndarray) -> list[np.ndarray]:
    """Return the tokens of reference answers, one array each.

    Args:
        sums: what is added, and how.
        thinking: (n,) bool, the mode.
        corrected: (n,) bool; where a thinking answer slips, it marks the wrong total with ``!`` and goes on with the
            right one, in place of what follows from the wrong one.
    """
    slipped, right = sums.totals(with_slips=True), sums.totals(with_slips=False)
    totals = np.where(corrected[:, None, None], right, slipped)
    thoughts, ends = sums.thoughts(totals), answers(totals)
    rows = []
    for row, end in enumerate(ends):
        slip = int(sums.slips[row])
        if not thinking[row]:
            rows.append(end)
        elif corrected[row] and slip >= 0:
            wrong = slipped[row].reshape(-1)[slip]
            place = slip // OPERANDS * (THOUGHT_TOKENS // COLUMNS) + slip % OPERANDS * 3 + 1  # behind the digit
            marked = np.array([wrong // 10, wrong % 10, MISTAKE])
            rows.append(np.concatenate([thoughts[row, :place], marked, thoughts[row, place:], end]))
        else:
            rows.append(np.concatenate([thoughts[row], end]))
    return rows


def draw_operands(generator: np.random.Generator, shares: tuple[float, float, float], count: int) -> np.ndarray:
    """Return random operands, (count, 3).

    Args:
        generator: of random numbers.
        shares: of numbers of two digits, of one digit, and of zeros.
        count: of sums.
    """
    kinds = generator.choice(3, size=(count, OPERANDS), p=shares)
    two, one = generator.integers(10, 100, kinds.shape), generator.integers(1, 10, kinds.shape)
    return np.select([kinds == 0, kinds == 1], [two, one], 0)


def draw_sums(generator: np.random.Generator, operands: np.ndarray, style: Style, slip_share: float) -> Sums:
    """Return sums with random orders and slips.

    Args:
        generator: of random numbers.
        operands: (n, 3).
        style: whether each column adds its digits in an order of its own, or from left to right.
        slip_share: share of the sums with a slip.
    """
    count = len(operands)
    orders = np.broadcast_to(np.arange(OPERANDS), (count, COLUMNS, OPERANDS))
    if style == "random":
        orders = generator.permuted(orders.copy(), axis=2)
    slips = np.where(generator.random(count) < slip_share, generator.integers(COLUMNS * OPERANDS, size=count), -1)
    return Sums(operands, orders, slips, generator.integers(1, HIGHEST_SLIP, count))


def is_held_out(operands: np.ndarray, share: float) -> np.ndarray:
    """Return whether sums are for the test, (n,) bool: by a hash of their operands alone, in every run."""
    number = (operands[:, 0] * 10_000 + operands[:, 1] * 100 + operands[:, 2]).astype(np.uint64)
    with np.errstate(over="ignore"):  # splitmix64: arithmetic modulo 2^64
        mixed = number + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed.astype(np.float64) / 2**64 < share
