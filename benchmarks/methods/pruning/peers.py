"""Races of pruning with other libraries on the same job; imported only where they are installed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.methods.pruning.setting import forward, largest_difference, smollm2, text_batches
from benchmarks.races.race import Contest, Race, timed
from pangu_modules.common.parameters import count_parameters

if TYPE_CHECKING:
    from torch import Tensor

SHARE = 0.25


def optipfair_contest() -> Contest:
    """Return the race with optipfair, which scores channels by weights and activations and cuts them."""
    import contextlib
    import io

    from optipfair import prune_model

    def peer(model: Any, batches: Sequence[dict[str, Tensor]]) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            options = {"pruning_percentage": 100 * SHARE, "dataloader": batches, "show_progress": False}
            return prune_model(model, neuron_selection_method="MAW", **options)

    return _channel_contest("optipfair", "optipfair", peer)


def modelopt_contest() -> Contest:
    """Return the race with ModelOpt's hooks, which score channels in one forward pass; our surgery cuts for them."""
    import torch
    from modelopt.torch.prune.importance_hooks.base_hooks import IndependentChannelContributionHook

    from pangu_modules.llm.models import decoder
    from pangu_modules.llm.pruning import surgery

    def peer(model: Any, batches: Sequence[dict[str, Tensor]]) -> Any:
        layers: Any = decoder.decoder_layers(model)
        with torch.no_grad():
            hooks = [IndependentChannelContributionHook(layer.mlp.down_proj) for layer in layers]
        handles = [layer.mlp.down_proj.register_forward_hook(hook) for layer, hook in zip(layers, hooks, strict=True)]
        forward(model, batches)
        for handle in handles:
            handle.remove()
        for layer, hook in zip(layers, hooks, strict=True):
            scores = hook.accumulate()
            surgery.keep_channels(layer, scores.topk(round((1 - SHARE) * len(scores))).indices.tolist())
        return model

    return _channel_contest("modelopt", "ModelOpt's channel contribution hooks", peer)


def _channel_contest(name: str, peer_name: str, prune: Callable[[Any, Sequence[dict[str, Tensor]]], Any]) -> Contest:
    """Return the races of removing a quarter of SmolLM2's FFN channels by weights and activations on 4096 tokens.

    Ours scores every layer on what the pruned layers below it pass on, the peers score all layers of the dense model.
    """
    from pangu_modules.llm.models.perplexity import perplexity
    from pangu_modules.llm.pruning.slimllm.config import SlimLLMConfig
    from pangu_modules.llm.pruning.slimllm.walk import prune_slimllm

    dense, texts = smollm2(), text_batches(40, 128)
    batches, held_out = texts[:-1], texts[-1:]
    config = SlimLLMConfig(
        base_share=SHARE,
        pruned_layers=30,
        alpha=0,
        head_unit="none",
        ffn_criterion="wanda_down",
        keep_least_share=0,
        recovery="none",
    )

    def ours() -> Any:
        model = copy.deepcopy(dense)
        prune_slimllm(model, config, batches)
        return model

    def peer() -> Any:
        return prune(copy.deepcopy(dense), batches)

    def check() -> tuple[float, float]:
        sizes = [count_parameters(model) for model in (ours(), peer())]
        return float(abs(sizes[0] - sizes[1])), 0

    what = "a quarter of the FFN channels by weights and activations, 4096 tokens"
    races = (
        Race(f"{name}_time", what, timed(ours), timed(peer), peer_name),
        Race(
            f"{name}_perplexity",
            f"{what}: perplexity on 1024 others",
            lambda: perplexity(ours(), held_out),
            lambda: perplexity(peer(), held_out),
            peer_name,
            unit="",
            exact=True,
        ),
    )
    return Contest(f"ours and {peer_name} (parameters)", check, races)


def torch_pruning_contest() -> Contest:
    """Return the race with Torch-Pruning: cutting the same FFN channels out of a Llama with equal head counts."""
    import torch
    import torch_pruning

    from pangu_modules.llm.models import decoder
    from pangu_modules.llm.models.loading import new_causal_lm
    from pangu_modules.llm.pruning import surgery

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 8}
    dense: Any = new_causal_lm("llama", {**sizes, "vocab_size": 1000}).eval()
    dense.config.use_cache = False
    ids = torch.arange(32)[None]
    gone = list(range(0, sizes["intermediate_size"], 4))
    kept = [channel for channel in range(sizes["intermediate_size"]) if channel % 4]

    def ours() -> Any:
        model = copy.deepcopy(dense)
        for layer in decoder.decoder_layers(model):
            surgery.keep_channels(layer, kept)
        return model

    def peer() -> Any:
        model = copy.deepcopy(dense)
        with warnings.catch_warnings(action="ignore"):
            graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs={"input_ids": ids})
        for layer in model.model.layers:
            graph.get_pruning_group(layer.mlp.gate_proj, torch_pruning.prune_linear_out_channels, idxs=gone).prune()
        return model

    race = Race(
        "torch_pruning",
        "cutting a quarter of the FFN channels out of a Llama of 8 layers, width 256",
        timed(ours),
        timed(peer),
        "Torch-Pruning",
    )

    def check() -> tuple[float, float]:
        return largest_difference(ours(), peer(), ids), 0  # the same rows and columns of the same weights

    return Contest("ours and Torch-Pruning's (logits)", check, (race,))
