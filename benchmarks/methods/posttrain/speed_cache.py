"""The size of the cache, and the time that reading it takes."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.methods.posttrain.speed_setting import Setting, cached, data_of, write_scores
from benchmarks.methods.posttrain.speed_step import Step, cached_step
from benchmarks.races.race import Contest, Race

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pangu_modules.llm.generation.records import Rollout
    from pangu_modules.llm.generation.store.score_rows import CachedScores

VOCABULARY, TOP_K = 153_376, 32  # openPangu's tokens, and the default k
SAMPLES, TOKENS = 32, 64  # a shard of recipes/posttrain_smollm2.py
BYTES = 140.0
READ_TARGET = 1 / 1.03
HALF = 2**-8  # half the spacing of float16 between 8 and 16 nats


def size_contest(vocabulary: int = VOCABULARY, samples: int = SAMPLES, tokens: int = TOKENS) -> Contest:
    """Return the comparison of bytes per token on disk, with random logits: ids that no compression makes smaller."""
    from pangu_modules.llm.generation.store.score_rows import read_scores

    folder = tempfile.TemporaryDirectory(prefix="posttrain-")  # as long as the functions below refer to it
    scores = random_scores(vocabulary, samples, tokens)
    shard = write_scores(Path(folder.name) / "scores", scores, vocabulary)
    per_token = shard.statistics["bytes"] / (samples * tokens)

    def check() -> tuple[float, float]:
        read = list(read_scores(f"{folder.name}/scores"))
        pairs = list(zip(scores, read, strict=True))
        if not all((one.top_ids == other.top_ids).all() for one, other in pairs):
            return float("inf"), HALF
        return max(float(abs(one.top_logprobs - other.top_logprobs).max()) for one, other in pairs), HALF

    title = f"bytes of the cache per token, k={TOP_K} of {vocabulary:,} tokens, in samples of {tokens}"
    races = (
        _bytes("cache_bytes", title, per_token, 2.0 * vocabulary, 2000),
        Race(
            "cache_bytes_limit",
            title,
            lambda: per_token,
            lambda: BYTES,
            "the limit",
            unit="bytes",
            target=1.0,
            exact=True,
        ),
    )
    return Contest("scores as given and as read back (log-probabilities; ids are equal)", check, races)


def random_scores(vocabulary: int, samples: int, tokens: int) -> list[CachedScores]:
    """Return the scores that a teacher with normal logits of deviation 3 gives to samples that it has not seen."""
    import torch

    from pangu_modules.llm.generation.store.score_rows import CachedScores

    generator = torch.Generator().manual_seed(0)
    scores = []
    for number in range(samples):
        logprobs = (3 * torch.randn(tokens, vocabulary, generator=generator)).log_softmax(-1)
        top = logprobs.topk(TOP_K)
        own, ids = logprobs[:, 0].numpy().copy(), top.indices.int().numpy()
        scores.append(CachedScores(f"task-{number}", 0, f"{number:016x}", own, ids, top.values.numpy()))
    return scores


def reading_contest(setting: Setting, rollouts: Sequence[Rollout], name: str, what: str) -> Contest:
    """Return the races of steps with batches from the cache against the steps alone, and of bytes on disk.

    Two steps differ by more than the three hundredths that are asked about, so both times are of one step.
    """
    shard = cached(setting, f"read_{name}", rollouts, setting.top_k)
    data = data_of(setting, f"read_{name}")
    data.setup("fit")
    step: Step = cached_step(setting)
    alone: list[float] = []

    def ours() -> float:
        start = time.perf_counter()
        batches = list(data.train_dataloader())
        read = time.perf_counter() - start
        start = time.perf_counter()
        for batch in batches:
            step(batch)
        alone.append((time.perf_counter() - start) / len(batches))
        return read / len(batches) + alone[-1]

    def check() -> tuple[float, float]:
        batches = list(data.train_dataloader())
        found = sum(int((batch["labels"] != -100).sum()) for batch in batches)
        return float(abs(found - len(rollouts) * setting.new_tokens)), 0.0

    vocabulary = step.module.model.config.vocab_size
    rows = f"{setting.batch_size} samples of {setting.new_tokens} tokens"
    races = (
        Race(
            f"cache_read_{name}",
            f"a step of {what} on {rows} with its batch from the cache, against the step in the same run",
            ours,
            lambda: alone[-1],
            "the step alone",
            target=READ_TARGET,
        ),
        _bytes(
            f"cache_bytes_{name}",
            f"bytes of the cache per token, k={setting.top_k} of {vocabulary:,} tokens, {len(rollouts)} samples of "
            f"{setting.new_tokens}",
            shard.statistics["bytes"] / shard.statistics["tokens"],
            2.0 * vocabulary,
            None,
        ),
    )
    return Contest("targets of the samples and of the cache's batches (their number)", check, races)


def _bytes(name: str, title: str, ours: float, peer: float, target: float | None) -> Race:
    peer_name = "all logits in float16"
    return Race(name, title, lambda: ours, lambda: peer, peer_name, unit="bytes", target=target, exact=True)
