"""The one-bit claims: progressive binarization of a pretrained model against its baselines (arXiv:2508.06974)."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.harness.arms import Arm, Claim, Method
from benchmarks.harness.quantities import Gain
from benchmarks.harness.verdicts import AlwaysEqual, EverySeedAbove, MostSeedsAbove
from benchmarks.methods.onebit.rows import (
    BASE_STEPS,
    FROM_SCRATCH,
    INIT_STEPS,
    PLAIN,
    STEPS,
    Conversion,
    FullPrecision,
    Tuned,
)
from benchmarks.methods.onebit.task import CALLBACK, LAST, LOSS, TRAIN_LOSS, taken
from callbacks import Distillation, ProgressiveBinarization
from pangu_modules import DistillationConfig, OneBitConfig

T_END_10 = math.log1p(10 / 1.3) / 20  # growth t_b with which t ends at 10

SETUP = (
    "Llama of width 128 with 4 layers (935,040 parameters, 802,816 of them binarized) on the King James Bible (4.2 MB, "
    "byte-level BPE of 1024 tokens trained on it), split in random chunks of 16 windows: 2 % for validation, 3 % for "
    f"the test. For each seed a base of its own, pretrained for {BASE_STEPS} steps of 1024 tokens; every arm then "
    f"takes {STEPS} steps of 8 x 64 tokens from it (or from scratch), with the same batches for all arms of a seed. "
    "AdamW (0.9, 0.95), weight decay 0.1, gradients clipped to norm 1, 20 steps of warm-up, cosine to 2 %. Weights "
    "alone are quantized. Test losses are those of the final, exactly binary model; where an arm is the better of two "
    "learning rates, each seed's validation loss chose."
)


def once(name: str, description: str, **onebit: Any) -> Conversion:
    """Return the row of a conversion that is only reported, on one seed."""
    return Conversion(name, description, onebit, seeds=1)


def distilled(name: str, description: str, method: str) -> Conversion:
    """Return the row of a method trained with half of the loss from the base as the teacher, on one seed."""
    student = OneBitConfig(method=method, init=PLAIN["init"], hard_tail=PLAIN["hard_tail"], schedule_steps=1.0)
    callbacks = {  # the teacher is taken before the weights change, so its callback comes first
        CALLBACK: None,
        "distill": Distillation.Config(method=DistillationConfig(lambda_kd=0.5, lambda_ce=0.5)),
        f"{CALLBACK}_student": ProgressiveBinarization.Config(method=student, measure=False),
    }
    return Conversion(name, description, seeds=1, callbacks=callbacks)


TAIL = {"hard_tail": "scales", "tail_share": 0.1, "schedule_steps": 0.9}

ARMS = (
    FullPrecision(
        "base",
        f"pretrained in full precision, {BASE_STEPS} steps",
        BASE_STEPS,
        batch_size=16,  # 1024 tokens a step
        optimizer={"warmup_share": 0.05},
    ),
    FullPrecision("continued", "full precision, trained on", STEPS, start_from="base"),
    # The methods, each at the better of two learning rates.
    Tuned(Conversion("progressive", "progressive, paper's schedule")),
    Tuned(Conversion("ste", "straight-through", {"method": "ste"})),
    Tuned(Conversion("svid", "OneBit: learned a sign(W) b^T", {"method": "onebit"})),
    Tuned(Conversion("constant", "progressive, t = 104.6 throughout", {"schedule": "constant"})),
    Tuned(Conversion("scratch", "BitNet b1 from scratch", {"method": "bitnet_b1"}, start_from=None), FROM_SCRATCH),
    # Progressive with one ingredient changed.
    Conversion("continuous", "progressive, t rises with every step from 0", {"phases": 0}),
    Conversion("t_end_10", "progressive, t ends at 10", {"t_b": T_END_10}),
    Conversion("analytic", "progressive without the learned scale", {"scales": "analytic"}),
    Conversion("frozen_scale", "progressive, S_a a constant in the backward", {"scale_grad": False}),
    Conversion("stage1", f"progressive, {INIT_STEPS} of the steps for initialization", {"init": "learned"}),
    Conversion("tail", "progressive, last 10 % with binary weights", TAIL),
    # Only reported, on one seed.
    once("ste_scale_grad", "straight-through, S_a differentiated", method="ste", scale_grad=True),
    once("ste_analytic", "straight-through without the learned scale", method="ste", scales="analytic"),
    once("lambda", "blend, lambda 0 to 1", method="lambda"),
    once("b1", "BitNet b1 from the base", method="bitnet_b1"),
    once("b158", "BitNet b1.58 (ternary) from the base", method="bitnet_b158"),
    Conversion(
        "scratch_b158", "BitNet b1.58 from scratch", {"method": "bitnet_b158"}, lr=4e-3, start_from=None, seeds=1
    ),
    once("rank_one", "progressive, initialized by SVID", init="svid"),
    once("per_linear", "progressive, stage 1 with a scale per layer", init="learned", input_scale="per_linear"),
    distilled("progressive_kd", "progressive, half distillation", "progressive"),
    distilled("ste_kd", "straight-through, half distillation", "ste"),
)
TAKEN = (
    taken("pretrained", "the base, in full precision", "progressive_lr2", "dense"),
    taken("sign", "the base's sign with row scales, untrained", "progressive_lr2", "sign"),
    taken("continuous_start", "progressive from t = 0, before the first step", "continuous", "start"),
    taken("ste_start", "straight-through, before the first step", "ste_lr2", "start"),
    taken("progressive_soft", "progressive, t = 104.6, before the sign", "progressive_lr2", "trained"),
    taken("t_end_10_soft", "progressive, t = 10, before the sign", "t_end_10", "trained"),
)
"""Losses that other arms measured on their way."""
QUICK = "scratch_lr2"  # binary layers from the first step; what starts from the base needs its 3000 steps first


def from_pretrained(arm: str, title: str) -> Claim:
    """Return the claim that a method gains from the base's pretraining."""
    return Claim(
        f"{arm}_from_pretrained",
        f"{title} from the base is at least 0.3 nats below BitNet b1 from scratch, with the same tokens",
        Gain(LOSS, arm, "scratch"),
        EverySeedAbove(0.3),
        paper="continued training from pretrained models beats training from scratch",
    )


GATES = (
    from_pretrained("progressive", "Progressive"),
    from_pretrained("ste", "Straight-through"),
    from_pretrained("svid", "OneBit"),
    Claim(
        "schedule",
        "The rising schedule is at least 0.015 nats below the same layer at t = 104.6 throughout",
        Gain(LOSS, "progressive", "constant"),
        EverySeedAbove(0.015),
        paper="gradual approximation is needed",
    ),
    Claim(
        "not_worse_than_ste",
        "Progressive is not worse than straight-through by more than 0.01 nats, each at its better learning rate",
        Gain(LOSS, "progressive", "ste"),
        EverySeedAbove(-0.01),
        paper="progressive beats straight-through methods",
    ),
    Claim(
        "trains_lower_than_ste",
        f"Progressive's training loss of the last {LAST} steps is below that of straight-through",
        Gain(TRAIN_LOSS, "progressive", "ste"),
        MostSeedsAbove(0),
    ),
    Claim(
        "starts_dense",
        "From t = 0 the binary layers start exactly at the loss of the pretrained model",
        Gain(LOSS, "continuous_start", "pretrained"),
        AlwaysEqual(0),
    ),
    Claim(
        "ste_starts_with_a_spike",
        "Straight-through starts at least 0.2 nats above the pretrained model",
        Gain(LOSS, "pretrained", "ste_start"),
        EverySeedAbove(0.2),
    ),
    Claim(
        "sign_changes_little",
        "Replacing t = 104.6 by the sign raises the loss by at most 0.02 nats",
        Gain(LOSS, "progressive_lr2", "progressive_soft"),
        EverySeedAbove(-0.02),
        paper="the error is negligible",
    ),
    Claim(
        "sign_needs_a_large_t",
        "Replacing t = 10 by the sign raises the loss by at least 0.03 nats (control)",
        Gain(LOSS, "t_end_10_soft", "t_end_10"),
        EverySeedAbove(0.03),
    ),
    Claim(
        "training_helps",
        "The trained binary model is at least 0.2 nats below the untrained sign",
        Gain(LOSS, "progressive", "sign"),
        EverySeedAbove(0.2),
    ),
)


def gain(arm: str, over: str, statement: str, paper: str = "") -> Claim:
    """Return what is reported of two arms' test losses."""
    return Claim(f"{arm}_over_{over}", statement, Gain(LOSS, arm, over), paper=paper)


SAME = "progressive_lr2"  # what ingredients are compared with: the same learning rate

REPORTED = (
    gain("progressive", "ste", "Progressive below straight-through, each at its better learning rate"),
    gain(SAME, "ste_lr2", "Progressive below straight-through, both at 2e-3"),
    gain("progressive_lr1", "ste_lr1", "Progressive below straight-through, both at 1e-3"),
    gain("progressive", "svid", "Progressive below OneBit"),
    gain("progressive", "continued", "Progressive below full precision trained on (expected: a loss)"),
    gain(SAME, "analytic", "Gain by the learned scale", "dual scaling helps"),
    gain("stage1", SAME, "Gain by stage 1, its steps counted", "binary-aware initialization helps"),
    gain(SAME, "frozen_scale", "Gain by differentiating S_a"),
    gain("continuous", SAME, "Gain by t that rises with every step instead of 20 phases"),
    gain("tail", SAME, "Gain by a hard tail of 10 %"),
    gain(SAME, "lambda", "Progressive below the blend"),
    gain(SAME, "b1", "Progressive below BitNet b1 from the base"),
    gain(SAME, "b158", "Progressive (2 values) below BitNet b1.58 (3 values) from the base"),
    gain("rank_one", SAME, "Gain by initialization with SVID"),
    gain("per_linear", SAME, "Gain by stage 1 with a scale per layer"),
    gain("ste_scale_grad", "ste_lr2", "Straight-through: gain by differentiating S_a"),
    gain("ste_analytic", "ste_lr2", "Straight-through: gain by leaving the learned scale out"),
    gain("progressive_kd", SAME, "Gain by distillation, progressive"),
    gain("ste_kd", "ste_lr2", "Gain by distillation, straight-through"),
)
"""What is measured and has no gate: whether progressive wins, and what each ingredient adds."""


def benchmark(miniature: bool = False) -> Method:
    """Return arms and claims; in miniature a few steps on little text."""
    return Method(
        name="onebit",
        title="One-bit weights by progressive binarization",
        source="arXiv:2508.06974",
        setup=SETUP,
        arms=arms(miniature),
        claims=GATES + REPORTED,
        metrics=(LOSS, TRAIN_LOSS),
        figure=(LOSS, TRAIN_LOSS),
        seeds=3,
        quick=QUICK,
    )


def arms(miniature: bool) -> tuple[Arm, ...]:
    """Return the arms of the tables."""
    return tuple(arm for row in ARMS for arm in row.arms(miniature)) + TAKEN
