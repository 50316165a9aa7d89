"""The tasks of MoGE's claims beside training: untrained routers, expert time by device, checkpoints, drafters."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.arms import ArmInput
from benchmarks.harness.recipe_arm import CHECKPOINT

if TYPE_CHECKING:
    from torch import Tensor

    from pangu_modules import CausalLM

EXPERTS, CHOSEN = 64, 8
UNIFORM = {  # (devices, tokens) -> E[imbalance score], E[max / mean load] of top-8 of 64 with uniform scores
    (8, 1): (2.440, 2.44), (8, 16): (0.675, 1.346), (8, 128): (0.243, 1.121), (8, 1024): (0.086, 1.042),
    (4, 1): (2.728, 1.72), (4, 16): (0.679, 1.172), (4, 128): (0.246, 1.060), (4, 1024): (0.089, 1.022),
    (2, 1): (2.082, 1.26), (2, 16): (0.513, 1.064), (2, 128): (0.193, 1.024), (2, 1024): (0.069, 1.009),
}  # fmt: skip
UNIFORM_TRIALS = 300  # the fewest that an entry above comes from


@dataclass(frozen=True)
class UniformRouters:
    """Routes random logits by top-K and by groups, and compares imbalance with what is known of uniform routers.

    Args:
        trials: tokens of a batch -> batches.
    """

    trials: Mapping[int, int]

    def __call__(self, seed: int, inputs: Mapping[str, ArmInput], folder: Path) -> dict[str, float]:
        """Return ``deviation``, the largest distance in standard errors, and the largest imbalance of MoGE."""
        import torch

        from pangu_modules.llm.moge.routing import route_moge, route_topk
        from pangu_modules.llm.moge.statistics import (
            balanced_token_probability,
            device_counts,
            imbalance_score,
            max_over_mean,
        )

        generator = torch.Generator().manual_seed(seed)
        values = {"deviation": 0.0, "moge_imbalance": 0.0}
        for tokens, batches in self.trials.items():
            logits = torch.rand(batches * tokens, EXPERTS, generator=generator)
            topk = route_topk(logits, CHOSEN).expert_ids
            moge = route_moge(logits, 8, CHOSEN).expert_ids
            for devices in (8, 4, 2):
                scores = imbalance_score(topk, EXPERTS, devices, tokens)
                ratios = max_over_mean(device_counts(topk, EXPERTS, devices, tokens))
                known = UNIFORM[devices, tokens]
                found = [distance(sample, value) for sample, value in zip((scores, ratios), known, strict=True)]
                if tokens == 1:
                    exact = balanced_token_probability(EXPERTS, CHOSEN, devices)
                    found.append(proportion_distance(float((scores == 0).double().mean()), exact, batches))
                grouped = float(imbalance_score(moge, EXPERTS, devices, tokens).max())
                values["deviation"] = max(values["deviation"], *found)
                values["moge_imbalance"] = max(values["moge_imbalance"], grouped)
                values[f"unbalanced_m{devices}_{tokens}"] = float((scores > 0).double().mean())
                values[f"imbalance_m{devices}_{tokens}"] = float(scores.mean())
                values[f"max_over_mean_m{devices}_{tokens}"] = float(ratios.mean())
        return values


def distance(sample: Tensor, known: float) -> float:
    """Return how far a sample's mean is from a known estimate beyond its rounding, in standard errors of both."""
    error = float(sample.std()) * math.sqrt(1 / len(sample) + 1 / UNIFORM_TRIALS)
    rounding = 0.005 if known == round(known, 2) else 0.0005
    return max(0.0, abs(float(sample.mean()) - known) - rounding) / error


def proportion_distance(found: float, exact: float, trials: int) -> float:
    """Return how far a proportion is from its exact value, in standard errors."""
    return abs(found - exact) / math.sqrt(exact * (1 - exact) / trials)


@dataclass(frozen=True)
class ExpertTime:
    """Times each device's experts alone on the rows that two trained routers send there; a step is the slowest device.

    Devices share the experts as with expert parallelism, but take turns: on few cores, processes that run at the same
    time measure the machine and not the balance. The experts are wider than those that were trained, so that the
    matrix products are what takes the time; which rows go where is the trained routers' decision.

    Args:
        devices: that share the experts.
        tokens: of the batch, from the test set.
        hidden_size: h of the timed experts.
        intermediate_size: I of the timed experts.
        repeats: measurements of each device, of which the median counts.
    """

    devices: int = 4
    tokens: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 1024
    repeats: int = 9

    def __call__(self, seed: int, inputs: Mapping[str, ArmInput], folder: Path) -> dict[str, float]:
        """Return the step of top-K over MoGE's in rows and in CPU time, and how far the two ratios are apart."""
        ids = {name: routed(inputs[name].folder, self.tokens, seed) for name in ("topk", "moge")}
        rows, seconds = {}, {}
        for name, chosen in ids.items():
            rows[name] = [len(local) for local in self._local(chosen)]
        for name, times in self._times(ids, seed).items():
            seconds[name] = max(times)
        by_rows, by_time = max(rows["topk"]) / max(rows["moge"]), seconds["topk"] / seconds["moge"]
        spread = float(max(rows["moge"]) - min(rows["moge"]))
        return {
            "row_ratio": by_rows,
            "time_ratio": by_time,
            "disagreement": abs(by_time / by_rows - 1),
            "moge_row_spread": spread,
        }

    def _local(self, expert_ids: Tensor) -> list[Tensor]:
        """Return the local expert numbers of the rows on each device, (rows, 1)."""
        per_device = 32 // self.devices
        flat = expert_ids.flatten()
        return [flat[flat // per_device == device][:, None] % per_device for device in range(self.devices)]

    def _times(self, ids: Mapping[str, Tensor], seed: int) -> dict[str, list[float]]:
        """Return the median CPU seconds of each device's experts; routers and devices take turns."""
        import torch

        from pangu_modules import GroupedExperts

        torch.manual_seed(seed)
        experts = GroupedExperts(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_experts=32 // self.devices,
        )
        tasks = {(name, device): rows for name in ids for device, rows in enumerate(self._local(ids[name]))}
        times: dict[tuple[str, int], list[float]] = {key: [] for key in tasks}
        with torch.no_grad():
            for turn in range(1 + self.repeats):
                for key, rows in tasks.items():
                    tokens, gates = torch.randn(len(rows), self.hidden_size), torch.ones(len(rows), 1)
                    start = time.process_time()
                    experts(tokens, rows, gates)
                    if turn:
                        times[key].append(time.process_time() - start)
        return {name: [statistics.median(times[name, device]) for device in range(self.devices)] for name in ids}


def routed(folder: Path, tokens: int, seed: int) -> Tensor:
    """Return what a trained model's middle layer chose for test tokens, (T, K)."""
    import torch

    from pangu_modules.llm.moge.block import recorded_routings

    module, batch = trained(folder), held_out_tokens(seed)
    with torch.no_grad():
        module.model(input_ids=batch[: -(-tokens // batch.shape[1])])
    routings = recorded_routings(module.model)
    return routings[len(routings) // 2].expert_ids[:tokens]


def trained(folder: Path) -> CausalLM:
    """Return the model that a recipe arm left in its folder, in evaluation mode."""
    from pangu_modules import CausalLM

    return CausalLM.load_from_checkpoint(folder / CHECKPOINT, weights_only=True, map_location="cpu").eval()


def held_out_tokens(seed: int) -> Tensor:
    """Return the windows of the text recipe's test set, (windows, 128)."""
    import torch

    from recipes.moge_text import recipe

    data: Any = recipe.stages[""].data.derive(seed=seed).build()
    data.setup("test")
    return torch.stack([window["input_ids"] for window in data.test_dataset])


@dataclass(frozen=True)
class RoundTrip:
    """Loads a random checkpoint in the released layout, compares it with a loop over experts, and saves it again."""

    def __call__(self, seed: int, inputs: Mapping[str, ArmInput], folder: Path) -> dict[str, float]:
        """Return ``logit_error``, the largest difference of logits, and ``changed_tensors`` after saving."""
        import torch
        from safetensors.torch import load_file

        from benchmarks.methods.moge.checkpoint import LoopMixture, write_released
        from pangu_modules import PanguProMoEForCausalLM

        state = write_released(folder / "released", seed)
        model = PanguProMoEForCausalLM.from_pretrained(folder / "released", dtype=torch.float32).eval()
        tokens = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            logits = model(tokens).logits
            model.save_pretrained(folder / "saved")
            for number, layer in enumerate(model.model.layers):
                layer.mlp = LoopMixture(state, f"model.layers.{number}.mlp")
            expected = model(tokens).logits
        saved = load_file(folder / "saved" / "model.safetensors")
        names = state.keys() | saved.keys()
        changed = sum(not (name in state and name in saved and torch.equal(state[name], saved[name])) for name in names)
        return {"logit_error": float((logits - expected).abs().max()), "changed_tensors": changed}


@dataclass(frozen=True)
class Speculate:
    """Continues test prompts greedily with a trained model, without and with a trained drafter, in turn.

    Args:
        drafter: arm whose checkpoint drafts.
        target: arm whose checkpoint writes; None for SmolLM2.
        prompts: how many.
        prompt_tokens: of each.
        new_tokens: written after each.
        drafted: tokens drafted at a time.
    """

    drafter: str
    target: str | None = None
    prompts: int = 8
    prompt_tokens: int = 64
    new_tokens: int = 64
    drafted: int = 4

    def __call__(self, seed: int, inputs: Mapping[str, ArmInput], folder: Path) -> dict[str, float]:
        """Return ``acceptance_rate``, ``tokens_per_pass``, ``speedup`` in CPU time, and ``equal`` continuations."""
        from pangu_modules import GenerationEngine, load_causal_lm

        drafter = trained(inputs[self.drafter].folder)
        drafter.model.save_pretrained(folder / "drafter")  # type: ignore[operator]
        model: Any = (
            load_causal_lm("smollm2").eval() if self.target is None else trained(inputs[self.target].folder).model
        )
        prompts = self._prompts(drafter, seed)
        settings = {"max_new_tokens": self.new_tokens, "batch_size": 1}
        plain = GenerationEngine.Config(**settings).build(model=model)
        drafting = {"assistant": str(folder / "drafter"), "assistant_tokens": self.drafted}
        fast = GenerationEngine.Config(**settings, **drafting).build(model=model)
        fast.generate(prompts[0][None].tolist())  # loads the drafter
        ratios, equal = [], 0
        for prompt in prompts.tolist():
            seconds, texts = [], []
            for engine in (plain, fast):
                start = time.process_time()
                texts.append(engine.generate([prompt]))
                seconds.append(time.process_time() - start)
            ratios.append(seconds[0] / seconds[1])
            equal += texts[0] == texts[1]
        counts = fast.speculation
        return {
            "acceptance_rate": counts.acceptance_rate,
            "tokens_per_pass": counts.tokens_per_pass,
            "speedup": statistics.median(ratios),
            "equal": equal / len(prompts),
        }

    def _prompts(self, drafter: CausalLM, seed: int) -> Tensor:
        import torch

        if self.target is not None:
            return held_out_tokens(seed)[: self.prompts, : self.prompt_tokens]
        from recipes.drafter_smollm2 import recipe

        data: Any = recipe.stages[""].data.derive(seed=seed, tokenizer="smollm2").build()
        data.setup("test")
        windows = [data.test_dataset[index]["input_ids"] for index in range(self.prompts)]
        return torch.stack(windows)[:, : self.prompt_tokens]
