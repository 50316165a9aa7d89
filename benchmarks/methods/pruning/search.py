"""Races of SlimLLM's parts: the greedy search over heads and the regression, against loops written out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.methods.pruning.setting import smollm2, text_batches
from benchmarks.races.race import Contest, Race, timed

if TYPE_CHECKING:
    from torch import Tensor

LAYER, NUM_HEADS, NUM_REMOVE = 10, 9, 3
SEARCH_TARGET = 20.0


def attention_inputs() -> tuple[Tensor, Tensor]:
    """Return the input of a layer's output matrix on 4096 tokens, (tokens, size), and that matrix."""
    import torch

    from pangu_modules.llm.calibration.stream import catch_stream, caught_input
    from pangu_modules.llm.models import decoder

    model = smollm2()
    layers: Any = decoder.decoder_layers(model)
    with torch.no_grad():
        stream = catch_stream(model, text_batches(8, 512))
        for number in range(LAYER):
            stream.pass_attention(layers[number], number)
            stream.pass_ffn(layers[number])
        attention = layers[LAYER].self_attn
        z = caught_input(attention.o_proj, stream.run_attention, layers[LAYER], LAYER, 0)
    return z.flatten(0, 1), attention.o_proj.weight.detach().clone()


def search_contest() -> Contest:
    """Return the race of the search without tokens against the search over tokens, which select the same heads."""
    from pangu_modules.llm.calibration.statistics import StreamingCovariance
    from pangu_modules.llm.pruning.slimllm.search import UnitGram, remove_units

    z, weight = attention_inputs()

    def gram() -> UnitGram:
        covariance = StreamingCovariance(z.shape[1], z.device)
        covariance.update(z)
        return UnitGram.of(covariance, weight, NUM_HEADS)

    given, outputs = gram(), contributions(z, weight)

    def check() -> tuple[float, float]:
        return float(len(set(remove_units(given, NUM_REMOVE)) ^ set(naive_search(outputs, NUM_REMOVE)))), 0

    what = f"{NUM_REMOVE} of {NUM_HEADS} heads by greedy exchange, 4096 tokens"
    races = (
        Race(
            "search",
            what,
            timed(lambda: remove_units(given, NUM_REMOVE)),
            timed(lambda: naive_search(outputs, NUM_REMOVE)),
            "the search over tokens",
            target=SEARCH_TARGET,
        ),
        Race(
            "search_with_statistics",
            f"{what}, with the statistics it needs",
            timed(lambda: remove_units(gram(), NUM_REMOVE)),
            timed(lambda: naive_search(contributions(z, weight), NUM_REMOVE)),
            "the search over tokens",
        ),
    )
    return Contest("both searches (heads that differ)", check, races)


def contributions(z: Tensor, weight: Tensor) -> list[Tensor]:
    """Return what each head adds to the attention's output, (tokens, size) each."""
    parts, columns = z.split(z.shape[1] // NUM_HEADS, dim=1), weight.split(z.shape[1] // NUM_HEADS, dim=1)
    return [part @ column.T for part, column in zip(parts, columns, strict=True)]


def naive_search(outputs: list[Tensor], num_remove: int) -> list[int]:
    """Search as published: every similarity from all tokens."""
    whole = sum(outputs[1:], outputs[0])

    def similarity(heads: list[int]) -> float:
        part = sum((outputs[head] for head in heads[1:]), outputs[heads[0]])
        a, b = part - part.mean(0), whole - whole.mean(0)
        return float(((a * b).sum(0).abs() / (a.norm(dim=0) * b.norm(dim=0))).sum())

    everyone = list(range(len(outputs)))
    order = sorted(everyone, key=lambda head: -similarity([other for other in everyone if other != head]))
    removed = order[:num_remove]
    kept = [head for head in everyone if head not in removed]
    best = similarity(kept)
    for newcomer in removed:
        chosen = kept
        for place in range(len(kept)):
            swapped = [*kept[:place], newcomer, *kept[place + 1 :]]
            value = similarity(swapped)
            if value > best:
                best, chosen = value, swapped
        kept = chosen
    return sorted(kept)


def repair_contest() -> Contest:
    """Return the race of the regression of all output dimensions at once against numpy.polyfit for each."""
    import numpy as np
    import torch

    from pangu_modules.llm.pruning.slimllm.regression import ColumnRegression, fit

    z, weight = attention_inputs()
    outputs = contributions(z, weight)
    y = sum(outputs[1:], outputs[0])
    u = y - outputs[0] - outputs[4]

    def ours() -> tuple[Tensor, Tensor]:
        regression = ColumnRegression(u.shape[1], u.device)
        regression.update(u, y)
        return fit("affine", regression.moments)

    def peer() -> tuple[Tensor, Tensor]:
        lines = [np.polyfit(a, b, 1) for a, b in zip(u.T.double().numpy(), y.T.double().numpy(), strict=True)]
        slope, intercept = torch.from_numpy(np.array(lines)).T
        return slope, intercept

    def check() -> tuple[float, float]:
        return max(float((a - b).abs().max()) for a, b in zip(ours(), peer(), strict=True)), 1e-5

    race = Race(
        "repair",
        f"regression of {u.shape[1]} output dimensions on 4096 tokens",
        timed(ours),
        timed(peer),
        "numpy.polyfit for each",
    )
    return Contest("both regressions (slopes and intercepts)", check, (race,))
