"""The one-bit claims: progressive binarization of a pretrained model against its baselines (arXiv:2508.06974)."""

from __future__ import annotations

import math

from benchmarks.harness.arms import Arm, Claim, Method
from benchmarks.harness.quantities import Gain
from benchmarks.harness.verdicts import AlwaysEqual, EverySeedAbove, MostSeedsAbove
from benchmarks.methods.onebit.task import (
    BASE_STEPS,
    CALLBACK,
    FROM_SCRATCH,
    INIT_STEPS,
    LAST,
    LOSS,
    STEPS,
    TRAIN_LOSS,
    Task,
    taken,
)
from callbacks import Distillation, ProgressiveBinarization
from pangu_modules import OneBitConfig

LR = 2e-3  # of what is compared with progressive_lr2
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


def benchmark(miniature: bool = False) -> Method:
    """Return arms and claims; in miniature a few steps on little text."""
    return Method(
        name="onebit",
        title="One-bit weights by progressive binarization",
        source="arXiv:2508.06974",
        setup=SETUP,
        arms=arms(Task(miniature)),
        claims=gates() + reported(),
        metrics=(LOSS, TRAIN_LOSS),
        figure=(LOSS, TRAIN_LOSS),
        seeds=3,
    )


def arms(task: Task) -> tuple[Arm, ...]:
    """Return the base, the methods at two learning rates, and ingredients of the progressive one at the larger."""
    return (
        task.base(),
        task.continued("continued", "full precision, trained on", LR),
        *task.tuned("progressive", "progressive, paper's schedule"),
        *task.tuned("ste", "straight-through", method="ste"),
        *task.tuned("svid", "OneBit: learned a sign(W) b^T", method="onebit"),
        *task.tuned("constant", "progressive, t = 104.6 throughout", schedule="constant"),
        *task.tuned("scratch", "BitNet b1 from scratch", FROM_SCRATCH, method="bitnet_b1", start_from=None),
        *ingredients(task),
        *single_seed(task),
        taken("pretrained", "the base, in full precision", "progressive_lr2", "dense"),
        taken("sign", "the base's sign with row scales, untrained", "progressive_lr2", "sign"),
        taken("continuous_start", "progressive from t = 0, before the first step", "continuous", "start"),
        taken("ste_start", "straight-through, before the first step", "ste_lr2", "start"),
        taken("progressive_soft", "progressive, t = 104.6, before the sign", "progressive_lr2", "trained"),
        taken("t_end_10_soft", "progressive, t = 10, before the sign", "t_end_10", "trained"),
    )


def ingredients(task: Task) -> tuple[Arm, ...]:
    """Return progressive with one ingredient changed, on all seeds."""
    return (
        task.converted("continuous", "progressive, t rises with every step from 0", LR, phases=0),
        task.converted("t_end_10", "progressive, t ends at 10", LR, t_b=T_END_10),
        task.converted("analytic", "progressive without the learned scale", LR, scales="analytic"),
        task.converted("frozen_scale", "progressive, S_a a constant in the backward", LR, scale_grad=False),
        task.converted("stage1", f"progressive, {INIT_STEPS} of the steps for initialization", LR, init="learned"),
        task.converted("tail", "progressive, last 10 % with binary weights", LR, **TAIL),
    )


TAIL = {"hard_tail": "scales", "tail_fraction": 0.1, "schedule_steps": 0.9}


def single_seed(task: Task) -> tuple[Arm, ...]:
    """Return what is only reported, on one seed."""
    return (
        task.converted(
            "ste_scale_grad", "straight-through, S_a differentiated", LR, seeds=1, method="ste", scale_grad=True
        ),
        task.converted(
            "ste_analytic", "straight-through without the learned scale", LR, seeds=1, method="ste", scales="analytic"
        ),
        task.converted("lambda", "blend, lambda 0 to 1", LR, seeds=1, method="lambda"),
        task.converted("b1", "BitNet b1 from the base", LR, seeds=1, method="bitnet_b1"),
        task.converted("b158", "BitNet b1.58 (ternary) from the base", LR, seeds=1, method="bitnet_b158"),
        task.converted(
            "scratch_b158", "BitNet b1.58 from scratch", 4e-3, seeds=1, method="bitnet_b158", start_from=None
        ),
        task.converted("rank_one", "progressive, initialized by SVID", LR, seeds=1, init="svid"),
        task.converted(
            "per_linear",
            "progressive, stage 1 with a scale per layer",
            LR,
            seeds=1,
            init="learned",
            input_scale="per_linear",
        ),
        distilled(task, "progressive_kd", "progressive, half distillation", "progressive"),
        distilled(task, "ste_kd", "straight-through, half distillation", "ste"),
    )


def distilled(task: Task, name: str, description: str, method: str) -> Arm:
    """Return a method trained with half of the loss from the base as the teacher."""
    onebit = OneBitConfig(method=method, init="none", hard_tail="none", schedule_steps=1.0)
    callbacks = {  # the teacher is taken before the weights change, so its callback comes first
        CALLBACK: None,
        "distill": Distillation.Config(lambda_kd=0.5, lambda_ce=0.5),
        f"{CALLBACK}_student": ProgressiveBinarization.Config(onebit=onebit, measure=False),
    }
    return task.converted(name, description, LR, seeds=1, callbacks=callbacks)


def gates() -> tuple[Claim, ...]:
    """Return the claims that get a verdict."""
    scratch = [
        Claim(
            f"{arm}_from_pretrained",
            f"{title} from the base is at least 0.3 nats below BitNet b1 from scratch, with the same tokens",
            Gain(LOSS, arm, "scratch"),
            EverySeedAbove(0.3),
            paper="continued training from pretrained models beats training from scratch",
        )
        for arm, title in (("progressive", "Progressive"), ("ste", "Straight-through"), ("svid", "OneBit"))
    ]
    return (
        *scratch,
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


def reported() -> tuple[Claim, ...]:
    """Return what is measured and has no gate: whether progressive wins, and what each ingredient adds."""

    def gain(arm: str, over: str, statement: str, paper: str = "") -> Claim:
        return Claim(f"{arm}_over_{over}", statement, Gain(LOSS, arm, over), paper=paper)

    same = "progressive_lr2"
    return (
        gain("progressive", "ste", "Progressive below straight-through, each at its better learning rate"),
        gain(same, "ste_lr2", "Progressive below straight-through, both at 2e-3"),
        gain("progressive_lr1", "ste_lr1", "Progressive below straight-through, both at 1e-3"),
        gain("progressive", "svid", "Progressive below OneBit"),
        gain("progressive", "continued", "Progressive below full precision trained on (expected: a loss)"),
        gain(same, "analytic", "Gain by the learned scale", "dual scaling helps"),
        gain("stage1", same, "Gain by stage 1, its steps counted", "binary-aware initialization helps"),
        gain(same, "frozen_scale", "Gain by differentiating S_a"),
        gain("continuous", same, "Gain by t that rises with every step instead of 20 phases"),
        gain("tail", same, "Gain by a hard tail of 10 %"),
        gain(same, "lambda", "Progressive below the blend"),
        gain(same, "b1", "Progressive below BitNet b1 from the base"),
        gain(same, "b158", "Progressive (2 values) below BitNet b1.58 (3 values) from the base"),
        gain("rank_one", same, "Gain by initialization with SVID"),
        gain("per_linear", same, "Gain by stage 1 with a scale per layer"),
        gain("ste_scale_grad", "ste_lr2", "Straight-through: gain by differentiating S_a"),
        gain("ste_analytic", "ste_lr2", "Straight-through: gain by leaving the learned scale out"),
        gain("progressive_kd", same, "Gain by distillation, progressive"),
        gain("ste_kd", "ste_lr2", "Gain by distillation, straight-through"),
    )
