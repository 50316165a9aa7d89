"""The race of packing: both sides have the same targets and losses, and packing computes fewer tokens."""

from tiny_llm import TINY_LLAMA

from benchmarks.methods.generation import packing_race
from benchmarks.races.race import run_contests
from datamodules.text.packing import PackedConversations

MODEL = {**TINY_LLAMA, "max_position_embeddings": packing_race.ROW}


def test_both_sides_learn_the_same_targets():
    (contest,) = packing_race.contests(MODEL, conversations=12)
    error, bound = contest.check()
    assert error <= bound
    (entry,) = run_contests([contest], repeats=1, report=lambda line: None)
    assert entry["target"] == packing_race.TARGET
    assert entry["unit"] == "ms"


def test_shifted_labels_would_be_seen():
    samples = packing_race.lognormal_conversations(12, MODEL["vocab_size"])
    module = packing_race.new_module(MODEL)
    packed = PackedConversations(samples, packing_race.ROW)
    whole = packing_race.Epoch(module, list(packing_race.collated(packed, 2)))
    cut = [{**batch, "labels": batch["labels"].roll(1, 1)} for batch in whole.batches]
    assert abs(whole.mean_loss() - packing_race.Epoch(module, cut).mean_loss()) > packing_race.BOUND
    padded = packing_race.Epoch(module, list(packing_race.collated(samples, 8)))
    assert padded.targets() == whole.targets()
    assert padded.tokens() > whole.tokens()
