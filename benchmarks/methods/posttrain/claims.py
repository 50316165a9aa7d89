"""The claims of post-training on sums: what comes of offline on-policy distillation (arXiv:2509.26497)."""

from __future__ import annotations

from benchmarks.harness.arms import Claim, Method
from benchmarks.harness.quantities import Gain
from benchmarks.harness.verdicts import EverySeedAbove
from benchmarks.methods.posttrain.rows import ROWS
from benchmarks.methods.posttrain.task import ACC_FAST, ACC_THINKING, KL_FAST, KL_THINKING, STUDENT, WALL, KeptShare

SETUP = (
    "Sums of three numbers of up to two digits, in a thinking mode (24 tokens, column by column, digits in random "
    "order) and a fast one (4 tokens). A student of 101,824 parameters learns to think (400 steps of 64 rows), then to "
    "answer fast with a quarter of thinking rows (500 steps), at 4e-3; a teacher of 404,352 learns both for 2400 steps "
    "at 3e-3, another one for each seed. What follows takes 200 steps of 64 samples at 2e-3, half of them in each "
    "mode: for distillation 4266 prompts, three times. AdamW (0.9, 0.95), weight decay 0.1, gradients clipped to norm "
    "1, 3 % of warm-up, cosine to 10 %; the loss is a mean over target tokens. Tests: 4000 sums, held out by a hash of "
    "their operands, in both modes; accuracy of greedy answers, KL(teacher || student) per token on answers that the "
    "tested student itself samples at temperature 1."
)

CURRICULUM = (
    Claim(
        "reason_first",
        "Thinking before fast is at least 20 points better in fast mode than the second stage alone",
        Gain(ACC_FAST, STUDENT, "second_alone"),
        EverySeedAbove(20),
        paper="reasoning data first, then fast answers",
    ),
    Claim(
        "replay_keeps",
        "With a quarter of thinking rows in the fast stage, thinking keeps at least 80 % of its accuracy",
        KeptShare(ACC_THINKING, STUDENT, "reason"),
        EverySeedAbove(80),
    ),
    Claim(
        "without_replay_lost",
        "Without them thinking loses at least 40 points",
        Gain(ACC_THINKING, "reason", "no_replay"),
        EverySeedAbove(40),
    ),
    Claim(
        "over_fast_alone", "Curriculum over fast alone, equal steps: fast mode", Gain(ACC_FAST, STUDENT, "fast_alone")
    ),
    Claim("over_mixed", "Curriculum over mixed, equal steps: fast mode", Gain(ACC_FAST, STUDENT, "mixed")),
    Claim("over_reversed", "Curriculum over the other order: fast mode", Gain(ACC_FAST, STUDENT, "reversed")),
)


def benchmark(miniature: bool = False) -> Method:
    """Return arms and claims; in miniature three steps on few rows."""
    return Method(
        name="posttrain",
        title="Curriculum fine-tuning and offline on-policy distillation",
        source="arXiv:2509.26497",
        setup=SETUP,
        arms=tuple(row.arm(miniature) for row in ROWS),
        claims=CURRICULUM,
        metrics=(ACC_FAST, ACC_THINKING, KL_FAST, KL_THINKING, WALL),
        figure=(ACC_FAST, KL_THINKING),
        seeds=3,
        quick="reason",
    )
