"""The races of a whole packed model: decoding, prefill, peak memory and size."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.methods.pruning.setting import largest_difference, smollm2, text_batches
from benchmarks.methods.pruning.speed import resident
from benchmarks.races.race import Contest, Race, timed

if TYPE_CHECKING:
    from torch import Tensor, nn

PROMPT, NEW_TOKENS = 16, 16
PREFILL = 128
BYTES_PER_WEIGHT = 0.14


def model_contest() -> Contest:
    """Return the races of decoding and prefill of SmolLM2 with packed signs against the same with dense weights."""
    dense, packed = models()
    ids = text_batches(1, 128)[0]["input_ids"][:1]

    def check() -> tuple[float, float]:
        # The last tokens go through the kernel, whose sums are ordered otherwise, in 30 layers; seen 2e-4.
        return largest_difference(packed, dense, ids[:, :8]), 5e-3

    def decode(model: nn.Module) -> Callable[[], float]:
        measure = timed(lambda: generate(model, ids))
        return lambda: 1e3 * measure() / NEW_TOKENS

    def prefill(model: nn.Module) -> Callable[[], float]:
        measure = timed(lambda: run(model, ids[:, :PREFILL]))
        return lambda: 1e3 * measure()

    races = (
        Race(
            "tokens_per_second",
            f"time per token of SmolLM2, {NEW_TOKENS} tokens one by one",
            decode(packed),
            decode(dense),
            "dense float32",
            unit="ms",
        ),
        Race(
            "prefill",
            f"prefill of {PREFILL} tokens, unpacking layer by layer",
            prefill(packed),
            prefill(dense),
            "dense float32",
            unit="ms",
        ),
    )
    return Contest("packed and dense SmolLM2 (logits)", check, races)


def size_contest() -> Contest:
    """Return the comparison of bytes: in the file, and at most in memory while the model loads and generates."""
    from pangu_modules.llm.onebit.packing import save_packed

    dense, packed = models()
    temporary = tempfile.TemporaryDirectory(prefix="onebit-")  # as long as the functions below refer to it
    folder = Path(temporary.name)
    size = save_packed(packed, folder / "packed")
    dense.save_pretrained(folder / "dense")  # type: ignore[operator]
    dense_bytes = (folder / "dense" / "model.safetensors").stat().st_size

    def check() -> tuple[float, float]:
        from pangu_modules.llm.onebit.packing import load_packed

        return largest_difference(load_packed(folder / "packed"), packed, text_batches(1, 128)[0]["input_ids"][:1]), 0

    def side(kind: str) -> Callable[[], float]:
        return lambda: peak_of_child(kind, f"{temporary.name}/{kind}")

    races = (
        Race(
            "bytes_per_weight",
            "bytes of bits and scales per binarized weight of SmolLM2",
            lambda: size.bytes_per_weight,
            lambda: 4.0,
            "float32",
            unit="bytes",
            target=4 / BYTES_PER_WEIGHT,
            exact=True,
        ),
        Race(
            "file",
            "file of the whole model, embedding in float32",
            lambda: size.file_bytes / 1e6,
            lambda: dense_bytes / 1e6,
            "float32",
            unit="MB",
            exact=True,
        ),
        Race(
            "peak_memory",
            f"peak memory of loading it and generating {NEW_TOKENS} tokens",
            side("packed"),
            side("dense"),
            "float32",
            unit="MB",
            exact=True,
        ),
    )
    return Contest("packed SmolLM2 from its folder and in memory (logits)", check, races)


def models() -> tuple[nn.Module, nn.Module]:
    """Return SmolLM2 with the signs of its weights times row scales, dense and packed."""
    from pangu_modules.llm.onebit.config import OneBitConfig
    from pangu_modules.llm.onebit.layer import ProgressiveBinaryLinear
    from pangu_modules.llm.onebit.packing import pack_model
    from pangu_modules.llm.onebit.plan import target_names

    dense = smollm2().requires_grad_(False)
    config = OneBitConfig(method="sign", init="none")
    linears = {}
    for name in target_names(dense, config):
        linear: Any = dense.get_submodule(name)
        linears[name] = ProgressiveBinaryLinear(linear, config).finalize()
        dense.set_submodule(name, linears[name])
    return dense, pack_model(dense, linears)


def peak_of_child(kind: str, folder: str) -> float:
    """Return `peak_megabytes`, measured in a new process."""
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_megabytes, (kind, folder))


def peak_megabytes(kind: str, folder: str) -> float:
    """Load a model and generate; return the most memory this process held, less what it held before, in MB."""
    import torch
    import transformers  # noqa: F401

    from pangu_modules.llm.models.loading import load_causal_lm
    from pangu_modules.llm.onebit.packing import load_packed

    ids = torch.arange(PROMPT)[None]
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:  # the peak counts from here
        file.write("5")
    model = load_packed(folder) if kind == "packed" else load_causal_lm(folder).eval()
    generate(model, ids)
    return resident("VmHWM") - before


def run(model: Any, ids: Tensor) -> None:
    """Run the model once."""
    import torch

    with torch.no_grad():
        model(input_ids=ids, use_cache=False)


def generate(model: Any, ids: Tensor) -> None:
    """Continue a prompt greedily with a KV cache."""
    import torch

    with torch.no_grad():
        model.generate(
            ids[:, :PROMPT], max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
        )
