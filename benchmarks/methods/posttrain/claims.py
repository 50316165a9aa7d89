"""The claims of post-training on sums: what comes of offline on-policy distillation (arXiv:2509.26497)."""

from __future__ import annotations

from benchmarks.harness.arms import Claim, Method
from benchmarks.harness.quantities import Below, Gain, Ratio, RecoveredShare, RelativeGain
from benchmarks.harness.verdicts import EverySeedAbove, MeanAbove
from benchmarks.methods.posttrain.identities import CACHED, FULL_KL, identity_arm
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

IDENTITIES = (
    Claim(
        "full_kl",
        "With all of the vocabulary the divergence equals F.kl_div, to 1e-6 nats",
        Below(FULL_KL, "identities", 1e-6),
        EverySeedAbove(0),
    ),
    Claim(
        "cached_is_resident",
        "At step 0 the loss from the cache is that of the resident teacher, to 1e-5 of it",
        Below(CACHED, "identities", 1e-5),
        EverySeedAbove(0),
    ),
)
DISTILLATION = (
    Claim(
        "style_kl",
        "KL in thinking mode at least 30 % below off-policy distillation on references in one style",
        RelativeGain(KL_THINKING, "on_policy", "off_policy_style"),
        EverySeedAbove(30),
    ),
    Claim(
        "style_accuracy",
        "Accuracy in thinking mode at least 20 points above it",
        Gain(ACC_THINKING, "on_policy", "off_policy_style"),
        EverySeedAbove(20),
    ),
    Claim(
        "more_sft_kl_thinking",
        "KL in thinking mode at least 5 % below that of more fine-tuning",
        RelativeGain(KL_THINKING, "on_policy", "more_sft"),
        EverySeedAbove(5),
    ),
    Claim(
        "more_sft_kl_fast",
        "KL in fast mode below that of more fine-tuning",
        RelativeGain(KL_FAST, "on_policy", "more_sft"),
        EverySeedAbove(0),
    ),
    Claim(
        "wrong_references",
        "Accuracy in fast mode at least 4 points above more fine-tuning on references of which 40 % are wrong",
        Gain(ACC_FAST, "on_policy", "more_sft_wrong"),
        MeanAbove(4),
    ),
    Claim(
        "most_of_online",
        "At least 80 % of online distillation's reduction of KL in thinking mode",
        RecoveredShare(KL_THINKING, "on_policy", STUDENT, "online"),
        MeanAbove(80),
    ),
    Claim(
        "time_of_online",
        "In at most 70 % of its time, three epochs, sampling and the teacher's pass included",
        RelativeGain(WALL, "on_policy", "online"),
        MeanAbove(30),
    ),
)


def kl_of(arm: str, over: str, statement: str) -> Claim:
    """Return what is reported of two arms' divergence in thinking mode."""
    return Claim(f"{arm}_kl_{over}", statement, RelativeGain(KL_THINKING, arm, over))


REPORTED = (
    kl_of("on_policy", "off_policy", "KL, thinking: below distillation on references as it was trained on"),
    Claim("sft_fast", "Accuracy in fast mode above more fine-tuning", Gain(ACC_FAST, "on_policy", "more_sft")),
    Claim("sft_thinking", "In thinking mode above it", Gain(ACC_THINKING, "on_policy", "more_sft")),
    kl_of("on_policy", "on_policy_full", "KL, thinking: k = 8 below all 18 tokens"),
    kl_of("on_policy_one", "on_policy_full", "KL, thinking: k = 1 below all 18 tokens"),
    kl_of("reverse", "on_policy", "KL, thinking: reverse KL below forward KL"),
    kl_of("jsd", "on_policy", "KL, thinking: JSD below forward KL"),
    kl_of("cold", "on_policy", "KL, thinking: samples at temperature 0.3 below 1.0"),
    kl_of("rounds_2", "on_policy", "KL, thinking: two rounds below one, equal steps"),
    kl_of("on_policy", "sequence_kd", "KL, thinking: below fine-tuning on the teacher's answers"),
    Claim(
        "over_rejection",
        "Accuracy in fast mode above fine-tuning on its own right answers",
        Gain(ACC_FAST, "on_policy", "rejection"),
    ),
    kl_of("correcting_on_policy", "correcting_start", "KL, thinking, from a self-correcting teacher: below before"),
    kl_of("correcting_online", "correcting_start", "The same online"),
    Claim("time", "Time of online distillation, as a factor of offline", Ratio(WALL, "online", "on_policy")),
)


def benchmark(miniature: bool = False) -> Method:
    """Return arms and claims; in miniature three steps on few rows."""
    return Method(
        name="posttrain",
        title="Curriculum fine-tuning and offline on-policy distillation",
        source="arXiv:2509.26497",
        setup=SETUP,
        arms=(*(row.arm(miniature) for row in ROWS), identity_arm("samples", "full_scores")),
        claims=IDENTITIES + DISTILLATION + CURRICULUM + REPORTED,
        metrics=(ACC_FAST, ACC_THINKING, KL_FAST, KL_THINKING, WALL),
        figure=(ACC_FAST, KL_THINKING),
        seeds=3,
        quick="reason",
    )
