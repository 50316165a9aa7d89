"""The sandwich-norm part of Pangu Light's claims: a byte model trained from scratch, its post-norms absorbed."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.arms import Arm, ArmInput
from benchmarks.harness.quantities import Metric
from benchmarks.methods.pruning.task import VARIANTS_FILE, Variant, picking_arms, size_of
from pangu_modules.common.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor, nn

DIFFERENCE = Metric("difference", "largest difference of logits", digits=1, higher_is_better=False)
SIGMAS: dict[str, Any] = {
    "absorbed": "mean_rms",
    "absorbed_rms": "rms_mean",
    "absorbed_inverse": "inv_mean_inv",
    "absorbed_healed": "mean_rms",
}
HEALED = ("absorbed_healed", "sandwich_continued")
WINDOW, BEGIN = 128, 256  # bytes; the token before every window
SHARED_BYTES = 64
MODEL = {
    "vocab_size": 257,
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "embedding_initializer_range": 0.4,
}
TRAINING_STEPS, TRAINING_LR, BATCH_SIZE = 500, 3e-3, 12
HEALING_STEPS, HEALING_LR = 30, 3e-4

VARIANTS = (
    Variant("sandwich", "byte model with sandwich norm, 1.3 M parameters, 500 steps"),
    Variant("absorbed", "post-norms absorbed, mean RMS"),
    Variant("absorbed_rms", "post-norms absorbed, root of the mean square"),
    Variant("absorbed_inverse", "post-norms absorbed, 1 / mean(1 / RMS)"),
    Variant("absorbed_healed", "post-norms absorbed, then 30 steps"),
    Variant("sandwich_continued", "the sandwich trained for the same 30 steps"),
    Variant("sandwich96_none", "sandwich, hidden size 96 of 128"),
    Variant("sandwich96_slnp", "sandwich, hidden size 96 of 128, SLNP"),
)


def sandwich_arms(miniature: bool) -> tuple[Arm, ...]:
    """Return the arms; the first trains the model and measures all of them."""
    training = [TRAINING_STEPS, TRAINING_LR, BATCH_SIZE, HEALING_STEPS, HEALING_LR, WINDOW]
    variants = [asdict(variant) for variant in VARIANTS]
    config = {"variants": variants, "model": MODEL, "training": training, "miniature": miniature}
    first = VARIANTS[0]
    return (Arm(first.name, first.description, Sandwich(miniature), config), *picking_arms(VARIANTS))


@dataclass(frozen=True)
class Sandwich:
    """Trains the byte model and measures what absorption and SLNP do to it."""

    miniature: bool

    def __call__(self, seed: int, inputs: Mapping[str, ArmInput], folder: Path) -> dict[str, float]:
        """Run all variants of this seed."""
        train, held_out, calibration = byte_windows(seed)
        dense = new_model(seed)
        fit(dense, train, steps=10 if self.miniature else TRAINING_STEPS, lr=TRAINING_LR, seed=seed)
        results = {}
        for variant in VARIANTS:
            model = changed(variant.name, dense, calibration)
            if variant.name in HEALED:
                fit(model, train, steps=HEALING_STEPS, lr=HEALING_LR, seed=seed + 1000)
            numbers = {"perplexity": perplexity_of(model, held_out), "removed": 1 - size_of(model) / size_of(dense)}
            numbers["difference"] = difference_from_llama(model, held_out) if variant.name in SIGMAS else 0.0
            results[variant.name] = numbers
        write_atomically(folder / VARIANTS_FILE, json.dumps(results))
        return results[VARIANTS[0].name]


def changed(name: str, dense: nn.Module, calibration: list[dict[str, Tensor]]) -> nn.Module:
    """Return a copy of the trained model as the arm of this name has it, before any healing."""
    from pangu_modules.llm.pruning.pangu_light.absorb import absorb_post_norms
    from pangu_modules.llm.pruning.pangu_light.config import PanguLightConfig
    from pangu_modules.llm.pruning.pangu_light.pipeline import prune_pangu_light

    model = copy.deepcopy(dense)
    if name in SIGMAS:
        absorbed, _ = absorb_post_norms(model, calibration, sigma=SIGMAS[name])
        return absorbed
    if name.startswith("sandwich96"):
        slnp = name.removeprefix("sandwich96_")
        method = PanguLightConfig(target={"hidden_size": 96}, clap={"enabled": False}, slnp=slnp)
        prune_pangu_light(model, method, calibration)
    return model


def new_model(seed: int) -> nn.Module:
    """Return the untrained byte model."""
    import torch

    from pangu_modules.llm.models.loading import new_causal_lm

    torch.manual_seed(seed)
    return new_causal_lm("sandwich_llama", MODEL)


def byte_windows(seed: int) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Return training windows, held-out windows (n, 128) and calibration batches; no 64 bytes in a row are shared.

    A window is the beginning token and 127 bytes of Python's reference texts.
    """
    import torch

    from datamodules.samples.embedded import python_topics
    from datamodules.text.ngrams import sequences_sharing

    text = torch.frombuffer(bytearray(python_topics().encode()), dtype=torch.uint8).long()
    count = len(text) // (WINDOW - 1)
    windows = torch.nn.functional.pad(text[: count * (WINDOW - 1)].view(count, -1), (1, 0), value=BEGIN)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    held_out, rest = windows[order[:160]], windows[order[160:]]
    rest = rest[~sequences_sharing(rest, held_out, SHARED_BYTES)]
    sets, train = rest[:96], rest[96:]
    calibration = sets[(seed % 3) * 32 :][:32]
    train = train[~sequences_sharing(train, sets, SHARED_BYTES)]
    return train, held_out, [{"input_ids": part} for part in calibration.split(8)]


def fit(model: nn.Module, windows: Tensor, *, steps: int, lr: float, seed: int) -> None:
    """Train on random windows with a cosine schedule, in float32."""
    import torch

    from pangu_modules.llm.losses import per_sequence_loss
    from pangu_modules.training.optim import OptimizerConfig, build_optimizer

    generator = torch.Generator().manual_seed(seed)
    settings = OptimizerConfig(lr=lr, betas=(0.9, 0.95), weight_decay=0.1, warmup_share=0.05)
    optimizer, scheduler = build_optimizer(model, settings, steps)
    runner: Any = model.train()
    for _ in range(steps):
        batch = windows[torch.randint(len(windows), (BATCH_SIZE,), generator=generator)]
        per_sequence_loss(runner(batch, use_cache=False).logits, batch).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    model.eval()


def perplexity_of(model: nn.Module, windows: Tensor) -> float:
    """Return the perplexity per byte."""
    from pangu_modules.llm.models.perplexity import perplexity

    return perplexity(model, [{"input_ids": part} for part in windows.split(32)])


def difference_from_llama(model: Any, windows: Tensor) -> float:
    """Return the largest difference between the model's logits and those of transformers' class with its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    plain: Any = AutoModelForCausalLM.from_config(model.config).eval()
    if type(plain).__module__.partition(".")[0] != "transformers":
        raise RuntimeError(f"the absorbed model is a {type(plain).__name__}, which transformers does not know")
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        return float((plain(windows[:8]).logits - model(windows[:8]).logits).abs().max())
