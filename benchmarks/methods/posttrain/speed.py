"""The races of post-training: size and reading of the cache, a step from it, the loss's memory, and TRL."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.methods.posttrain import speed_cache, speed_step, speed_trl
from benchmarks.methods.posttrain.speed_setting import random_samples, sampled, smollm2_setting, sums_setting
from benchmarks.races.race import Benchmark, Contest

SETUP = (
    "On the CPU in float32 with all cores. The teacher is SmolLM2-135M, the student every second of its layers, as in "
    "recipes/posttrain_smollm2.py, or four of them; samples are the student's own, all of one length. The small models "
    "have the sizes of recipes/posttrain_tiny.py, random weights and random samples. A step is forward, backward, "
    "clipping and AdamW, which is torch's plain one on our side and its fused one in TRL, the default of each. TRL "
    "trains with its teacher in memory by the forward divergence (beta 0), without gradient checkpointing, on its own "
    "samples or on ours; an epoch of ours reads the cache, so it is any epoch once samples and scores are there, and "
    "these cost sampling and the teacher's pass once. Peak memory is the resident memory of a process of its own, less "
    "what it held before models or logits."
)
STUDENT = "half of SmolLM2"
HALF, FOUR_LAYERS = 1.7, 3.2
"""Parameters of the teacher by those of the student: what a resident teacher costs grows with it."""
SUMS_STUDENT, SUMS = "a Llama of 101,824 parameters", 512


def benchmark() -> Benchmark:
    """Return the races of post-training; the one with TRL is left out where it is not installed."""
    left_out = (
        "" if speed_trl.has_trl() else f" Not installed, so not raced: TRL ({speed_trl.VARIABLE} names no folder)."
    )
    title = "Post-training: the cache, a step of distillation, memory, and TRL"
    return Benchmark(title, SETUP + left_out, contests())


def contests() -> Iterator[Contest]:
    """Build the contests one at a time."""
    yield speed_cache.size_contest()
    yield speed_step.memory_contest()
    with tempfile.TemporaryDirectory(prefix="posttrain-") as folder:
        setting = sums_setting(Path(folder))
        rollouts = random_samples(setting, SUMS)
        yield speed_cache.reading_contest(setting, rollouts, "sums", SUMS_STUDENT)
        yield speed_step.step_contest(setting, rollouts, "sums", SUMS_STUDENT)
    with tempfile.TemporaryDirectory(prefix="posttrain-") as folder:
        setting = smollm2_setting(Path(folder), 2)
        rollouts = sampled(setting)
        yield speed_cache.reading_contest(setting, rollouts, "smollm2", STUDENT)
        yield speed_step.step_contest(setting, rollouts, "smollm2", STUDENT)
        if speed_trl.has_trl():
            yield speed_trl.trl_contest(setting, rollouts, "half", f"{STUDENT} (teacher of {HALF} times its size)")
    if speed_trl.has_trl():
        with tempfile.TemporaryDirectory(prefix="posttrain-") as folder:
            setting = smollm2_setting(Path(folder), 8)
            what = f"four layers of SmolLM2 (teacher of {FOUR_LAYERS} times its size)"
            yield speed_trl.trl_contest(setting, sampled(setting), "four_layers", what)
