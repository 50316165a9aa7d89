"""The races of generation: the engine in this process, the client of a server, the store, and packed chat data."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.methods.generation import client_race, engine_race, packing_race, store_race
from benchmarks.races.race import Benchmark, Contest

SETUP = (
    "On the CPU with all cores. The engine's loop and transformers' generate write greedy completions with "
    f"the first {engine_race.LAYERS} layers of SmolLM2-135M, its embedding and its head, in float32, after prompts of "
    "random tokens; the lengths are drawn once and forced on both, by a criterion for each row in transformers, which "
    "computes rows that have ended until the longest of its batch has. Samples of one prompt have temperature 1. "
    + client_race.SETUP
)


def benchmark() -> Benchmark:
    """Return the races of generation."""
    return Benchmark("Generation: the engine, the client, the store, packed rows", SETUP, contests())


def contests() -> Iterator[Contest]:
    """Build the contests one at a time."""
    for race in (engine_race, client_race, store_race, packing_race):
        yield from race.contests()
