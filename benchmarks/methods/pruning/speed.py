"""The races of pruning: calibration against a forward pass, search and repair, pruned against dense, and peers."""

from __future__ import annotations

import copy
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.methods.pruning.peers import modelopt_contest, optipfair_contest, torch_pruning_contest
from benchmarks.methods.pruning.search import repair_contest, search_contest
from benchmarks.methods.pruning.setting import forward, largest_difference, smollm2, text_batches
from benchmarks.races.race import Benchmark, Contest, Race, timed

if TYPE_CHECKING:
    from torch import Tensor, nn

WINDOWS, LENGTH = 128, 512  # of the memory; five pairs of times on them would take an hour of CPU time
TIMED_WINDOWS = 32
BATCH = 1  # larger batches take no less time per token on a CPU, and more memory
PRUNE_TARGET = 1 / 1.5  # at most 1.5 times the forward passes
MEMORY_TARGET = 1 / 1.6
PEERS = {"optipfair": "optipfair", "modelopt": "ModelOpt", "torch_pruning": "Torch-Pruning"}
SETUP = (
    "SmolLM2-135M on the CPU in float32 with all cores. Pruning is SlimLLM's published 20 % setting, whole "
    f"(statistics, selection, surgery, repair), calibrated on windows of {LENGTH} tokens of Python's "
    "reference texts, one at a time; its peer is one forward pass over the same tokens without the head. The method "
    "has two: the layer shares need the whole dense model, then every layer is pruned on what the pruned ones below "
    "pass on; one share for all layers saves the first. Peak memory is the resident memory of a process of its own, "
    "less what it held besides the model's parameters when pruning began, a tiny model having been pruned before so "
    "that the libraries are in memory. The parameters are the process's own: of a model mapped from its file the "
    "replaced weights count until the whole mapping is given up. Models raced for their speed are cut without regard "
    "to importance, which costs no speed."
)


def benchmark() -> Benchmark:
    """Return the races of pruning; those with peers that are not installed are left out, and named."""
    missing = [title for package, title in PEERS.items() if importlib.util.find_spec(package) is None]
    left_out = f" Not installed, so not raced: {', '.join(missing)}." if missing else ""
    title = "Pruning: calibration, search, repair, and the speed of what is left"
    return Benchmark(title, SETUP + left_out, contests())


def contests() -> Iterator[Contest]:
    """Build the contests one at a time."""
    yield search_contest()
    yield repair_contest()
    yield pruned_contest("20", 6, 2, 1195)
    yield pruned_contest("50", 3, 1, 853)
    if importlib.util.find_spec("optipfair") is not None:
        yield optipfair_contest()
    if importlib.util.find_spec("modelopt") is not None:
        yield modelopt_contest()
    if importlib.util.find_spec("torch_pruning") is not None:
        yield torch_pruning_contest()
    yield whole_contest()


def whole_contest() -> Contest:
    """Return the race of calibrating and pruning against the forward passes alone, in time and in memory."""
    from pangu_modules.llm.pruning.slimllm.config import SlimLLMConfig
    from pangu_modules.llm.pruning.slimllm.walk import prune_slimllm

    dense, batches = smollm2(), text_batches(TIMED_WINDOWS, LENGTH, BATCH)

    def prune(tokens: Sequence[dict[str, Tensor]], **changes: Any) -> float:
        model = copy.deepcopy(dense)
        config = SlimLLMConfig(**{"pruned_layers": 24} | changes)
        return timed(lambda: prune_slimllm(model, config, tokens))()

    def check() -> tuple[float, float]:
        whole = copy.deepcopy(dense)
        prune_slimllm(whole, SlimLLMConfig(base_share=0.0), batches[:1])
        return largest_difference(whole, dense, batches[0]["input_ids"][:1]), 0

    races = (
        Race(
            "prune_time",
            f"calibrating on {TIMED_WINDOWS} x {LENGTH} tokens and pruning",
            warmed_by_a_part(prune, batches),
            warmed_by_a_part(lambda tokens: timed(lambda: forward(dense, tokens))(), batches),
            "the forward passes alone",
            target=PRUNE_TARGET,
        ),
        Race(
            "prune_time_one_share",
            f"calibrating on {TIMED_WINDOWS} x {LENGTH} tokens and pruning by one share in all layers",
            warmed_by_a_part(lambda tokens: prune(tokens, alpha=0, pruned_layers=30), batches),
            warmed_by_a_part(lambda tokens: timed(lambda: forward(dense, tokens))(), batches),
            "the forward passes alone",
        ),
        Race(
            "prune_memory",
            f"peak memory of calibrating on {WINDOWS} x {LENGTH} tokens and pruning",
            peak_of_child,
            lambda: megabytes(dense) + statistics_megabytes(dense),
            "the model and one layer's statistics",
            unit="MB",
            target=MEMORY_TARGET,
            exact=True,
        ),
    )
    return Contest("pruning nothing and the dense model (logits)", check, races)


def warmed_by_a_part(
    measure: Callable[[Sequence[dict[str, Tensor]]], float], batches: Sequence[dict[str, Tensor]]
) -> Callable[[], float]:
    """Return a measurement whose first call, which only warms up, takes few batches: the whole takes minutes."""
    parts = itertools.chain([batches[:4]], itertools.repeat(batches))
    return lambda: measure(next(parts))


def peak_of_child() -> float:
    """Return `peak_megabytes`, measured in a new process; the tokenizer stays in this one."""
    import multiprocessing

    batches = text_batches(WINDOWS, LENGTH, BATCH)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_megabytes, ([batch["input_ids"].tolist() for batch in batches],))


def peak_megabytes(batches: list[list[list[int]]]) -> float:
    """Prune in this process on batches of windows of tokens.

    Returns:
        The most memory it held, less what it held besides the model's parameters when pruning began, in MB.
    """
    import torch

    from pangu_modules.llm.pruning.slimllm.config import SlimLLMConfig
    from pangu_modules.llm.pruning.slimllm.walk import prune_slimllm

    calibration = [{"input_ids": torch.tensor(batch)} for batch in batches]
    prune_tiny()
    # The copy lies in the process's own memory, as weights do once they were trained; the mapped file is given up.
    model = copy.deepcopy(smollm2())
    held = resident("VmRSS") - megabytes(model)
    with open("/proc/self/clear_refs", "w") as file:  # the peak counts from here
        file.write("5")
    prune_slimllm(model, SlimLLMConfig(pruned_layers=24), calibration)
    return resident("VmHWM") - held


def prune_tiny() -> None:
    """Prune a tiny random Llama, which brings into memory what libraries need for it."""
    import torch

    from pangu_modules.llm.models.loading import new_causal_lm
    from pangu_modules.llm.pruning.slimllm.config import SlimLLMConfig
    from pangu_modules.llm.pruning.slimllm.walk import prune_slimllm

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = new_causal_lm("llama", sizes | heads)
    prune_slimllm(model, SlimLLMConfig(pruned_layers=2), [{"input_ids": torch.arange(3, 64).expand(8, -1)}])


def resident(field: str) -> float:
    """Return a line of Linux's account of this process's memory, in MB: VmRSS is held now, VmHWM was the most."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def megabytes(model: nn.Module) -> float:
    """Return the memory of a model's parameters in MB."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e6


def statistics_megabytes(model: Any) -> float:
    """Return what one layer's statistics take: two covariances and the heads' Gram matrices, in float64, in MB."""
    config = model.config
    heads, width = config.num_attention_heads, config.hidden_size
    columns = heads * config.head_dim
    return 8 * (columns**2 + width**2 + width * config.num_key_value_heads**2 + 3 * config.intermediate_size) / 1e6


def pruned_contest(name: str, num_heads: int, num_kv_heads: int, channels: int) -> Contest:
    """Return the races of a model whose layers have these sizes against the dense one with the rest masked."""
    from pangu_modules.llm.models import decoder
    from pangu_modules.llm.pruning import surgery
    from pangu_modules.llm.pruning.plan import LayerSizes

    dense, pruned, masked = smollm2(), smollm2(), smollm2()
    sizes = LayerSizes(num_heads=num_heads, num_kv_heads=num_kv_heads, intermediate_size=channels)
    for layer in decoder.decoder_layers(pruned):
        sizes.apply(layer)
    surgery.refresh_config(pruned)
    mask_rest(masked, num_heads, channels)
    ids = text_batches(1, 128)[0]["input_ids"]
    what = f"{name} % of FFN and attention removed"

    def race(kind: str, title: str, measure: Callable[[nn.Module], float], **fields: Any) -> Race:
        sides = (lambda: measure(pruned)), (lambda: measure(dense))
        return Race(f"{kind}_{name}", f"{title}, {what}", *sides, "dense", **fields)

    def check() -> tuple[float, float]:
        return largest_difference(pruned, masked, ids), 1e-3  # seen 0; sums may be ordered otherwise elsewhere

    races = (
        race("prefill", "prefill of 128 tokens", lambda model: timed(lambda: run(model, ids))()),
        race("decode", "16 tokens one by one", lambda model: timed(lambda: decode(model, ids))()),
        race("flops", "operations of a forward pass", lambda model: operations(model, ids), unit="GFLOP", exact=True),
    )
    return Contest(f"pruned by {name} % and masked (logits)", check, races)


def mask_rest(model: nn.Module, num_heads: int, channels: int) -> None:
    """Zero the output columns of all heads and channels but the first."""
    import torch

    from pangu_modules.llm.models import decoder

    layers: Any = decoder.decoder_layers(model)
    with torch.no_grad():
        for layer in layers:
            layer.self_attn.o_proj.weight[:, num_heads * layer.self_attn.head_dim :] = 0
            layer.mlp.down_proj.weight[:, channels:] = 0


def run(model: Any, ids: Tensor) -> None:
    """Run the model once."""
    import torch

    with torch.no_grad():
        model(input_ids=ids, use_cache=False)


def decode(model: Any, ids: Tensor) -> None:
    """Continue a prompt greedily by 16 tokens with a KV cache."""
    import torch

    with torch.no_grad():
        model.generate(ids[:, :16], max_new_tokens=16, min_new_tokens=16, do_sample=False, pad_token_id=0)


def operations(model: Any, ids: Tensor) -> float:
    """Return the operations of a forward pass, a multiply-add counted as two, in 10^9."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run(model, ids)
    return counter.get_total_flops() / 1e9
