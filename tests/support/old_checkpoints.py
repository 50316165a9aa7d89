"""Tiny runs whose checkpoints lie in tests/support/checkpoints, written before configuration fields were renamed.

``python tests/support/old_checkpoints.py FOLDER`` writes them; see the README beside them. The configurations below are
plain data with the names of that time: reading them now exercises `Config.renamed` as stored checkpoints do.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback
from torch.utils.data import Dataset

import callbacks as all_callbacks
import pangu_modules
from datamodules import DataModule

STEPS, SAVED_AT = 6, 3
VOCABULARY = 32
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
}
ONE_LAYER = {**LLAMA, "num_hidden_layers": 1}
MOGE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_groups": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 4,
    "shared_expert_intermediate_size": 4,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
    "eos_token_id": None,
    "pad_token_id": None,
    "router": "deepseek",
}
VIT = {
    "backbone": "vit_tiny_patch16_224",
    "model_args": {
        "img_size": 8,
        "patch_size": 4,
        "embed_dim": 8,
        "depth": 1,
        "num_heads": 2,
        "mlp_ratio": 1,
        "qkv_bias": False,
        "in_chans": 1,
    },
}
OPTIMIZER = {"lr": 0.01, "schedule": "constant", "warmup_fraction": 0}
CALIB = {"n_samples": 4, "seq_len": 12, "batch_size": 4}
SLIM = {"base_ratio": 0.5, "pruned_layers": 1, "calib": CALIB}
TEACHER = "<the dense checkpoint, exported>"


class Samples(Dataset[dict[str, torch.Tensor]]):
    """Random sequences of two domains, or random images of three classes."""

    def __init__(self, size: int, seed: int, images: bool) -> None:
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.arange(size)
        if images:
            image = torch.randn(size, 1, 8, 8, generator=generator)
            self.columns = {"image": image, "label": numbers % 3}
        else:
            tokens = torch.randint(3, VOCABULARY, (size, 12), generator=generator)
            self.columns = {"input_ids": tokens, "domain": numbers % 2}

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


class TinyData(DataModule):
    """24 training samples, 8 each for validation, test and calibration."""

    class Config(DataModule.Config):
        """Small batches."""

        batch_size: int = 4
        eval_batch_size: int = 4
        images: bool = False

    def setup(self, stage: str | None = None) -> None:
        """Draw the samples."""
        kind = self.config.images
        self.train_dataset, self.val_dataset = Samples(24, 1, kind), Samples(8, 2, kind)
        self.test_dataset, self.calibration_dataset = Samples(8, 3, kind), Samples(8, 4, kind)


@dataclass(frozen=True)
class Run:
    """A run: module class and configuration, and callbacks by name as (class, configuration)."""

    module: str
    config: Mapping[str, Any]
    callbacks: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    final: bool = False  # the checkpoint is that of the end

    @property
    def images(self) -> bool:
        """Whether the module reads images."""
        return self.module != "CausalLM"


def llm(model_args: Mapping[str, Any] = LLAMA, architecture: str = "llama", **fields: Any) -> dict[str, Any]:
    """Return the configuration of a language model."""
    return {"architecture": architecture, "model_args": dict(model_args), "optimizer": OPTIMIZER, **fields}


EMA = {"ema": ("WeightAverage", {"decay": 0.8})}
BINARIZE = {
    "binarize": (
        "ProgressiveBinarization",
        {
            "onebit": {"init": "learned", "init_steps": 2, "phases": 4, "targets": ["q_proj", "up_proj"]},
            "measure": True,
        },
    )
}
DWM = {
    "n_stages": 3,
    "dwm_steps": 2,
    "val_batch_size": 4,
    "dwm_lr": 0.01,
    "model": {"encoder": "losses", "d_model": 8},
}
RUNS: dict[str, Run] = {
    "dense": Run("CausalLM", llm(ONE_LAYER), {**EMA, "exact_resume": ("ExactResume", {})}),
    "pruned": Run(
        "CausalLM",
        llm(),
        {
            "distill": ("Distillation", {"teacher": TEACHER, "lambda_ce": 0.5}),
            "prune": ("StructuredPruning", {"method": SLIM, "progress_folder": None}),
        },
    ),
    "dropped": Run(
        "CausalLM",
        llm(),
        {"drop": ("LayerDropping", {"method": {"dropped_layers": 1, "calib": CALIB}, "progress_folder": None})},
    ),
    "pangu_light": Run(
        "CausalLM",
        llm({**LLAMA, "tie_word_embeddings": False}, "sandwich_llama"),
        {
            "prune": (
                "PanguLightPruning",
                {
                    "method": {"target": {"hidden_size": 6}, "absorb": {"enabled": True}, "calib": CALIB},
                    "progress_folder": None,
                },
            )
        },
    ),
    "absorbed": Run(
        "CausalLM",
        llm(ONE_LAYER, "sandwich_llama"),
        {
            "absorb": (
                "PostNormAbsorption",
                {"absorb": {"enabled": True, "max_ppl_increase": 1000.0}, "calib": CALIB},
            )
        },
    ),
    "binarize_mid": Run("CausalLM", llm(ONE_LAYER), BINARIZE),
    "binarize_final": Run("CausalLM", llm(ONE_LAYER), BINARIZE, final=True),
    "upcycled": Run(
        "CausalLM",
        llm(
            ONE_LAYER,
            structure=[
                {
                    "kind": "upcycle",
                    "upcycle": {
                        "num_experts": 4,
                        "num_groups": 2,
                        "experts_per_token": 2,
                        "shared_intermediate_size": 4,
                    },
                }
            ],
        ),
    ),
    "moge": Run(
        "CausalLM",
        llm(MOGE, "PanguProMoE"),
        {
            "balance": ("RouterBalancing", {"coefficient": 0.1, "z_coefficient": 0.01}),
            "load": ("ExpertLoad", {"token_counts": [4]}),
        },
    ),
    "lora": Run("CausalLM", llm(ONE_LAYER, lora={"rank": 2, "targets": ["q_proj"]})),
    "dwm": Run("CausalLM", llm(ONE_LAYER), {"dwm": ("DWMReweighting", DWM)}),
    "weighted": Run(
        "CausalLM",
        llm(ONE_LAYER),
        {"weighting": ("BatchWeighting", {"method": "random", "ess": [0.6], "n_stages": 2, "seed": 1})},
    ),
    "influence": Run(
        "CausalLM",
        llm(ONE_LAYER),
        {"influence": ("InfluenceSelection", {"n_stages": 2, "probes": 12, "val_batch_size": 4})},
    ),
    "image": Run("ImageClassifier", {**VIT, "optimizer": OPTIMIZER}),
    "scalenet": Run("ScaleNetClassifier", {**VIT, "optimizer": OPTIMIZER, "adapter_rank": 2, "pretrained": False}),
}


class SaveOnce(Callback):
    """Saves a checkpoint after a batch, or at the end, and lets training go on."""

    def __init__(self, path: Path, final: bool) -> None:
        self.path, self.final = path, final

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        """Save."""
        if trainer.global_step == (STEPS if self.final else SAVED_AT) and not self.path.is_file():
            trainer.save_checkpoint(self.path)


def build_callbacks(run: Run, teacher: Path | None) -> list[Callback]:
    """Return the run's callbacks."""
    built: list[Callback] = []
    for name, (kind, config) in run.callbacks.items():
        values = {key: str(teacher) if value == TEACHER else value for key, value in config.items()}
        built.append(getattr(all_callbacks, kind).Config.model_validate(values).build(name=name))
    return built


def build_module(run: Run) -> Any:
    """Return the run's module, initialised from seed 0."""
    torch.manual_seed(0)
    runtime = {"num_classes": 3} if run.images else {}
    return getattr(pangu_modules, run.module).Config.model_validate(run.config).build(**runtime)


def fit(run: Run, module: Any, folder: Path, *extra: Callback, teacher: Path | None, ckpt_path: Any = None) -> None:
    """Train to the end; `ckpt_path` resumes."""
    trainer = lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=STEPS,
        limit_val_batches=0,
        callbacks=[*build_callbacks(run, teacher), *extra],
    )
    resumed = {"ckpt_path": str(ckpt_path), "weights_only": True} if ckpt_path else {}
    trainer.fit(module, datamodule=TinyData.Config(images=run.images).build(), **resumed)


@torch.no_grad()
def outputs_of(module: Any) -> list[float]:
    """Return sixteen numbers of the logits on the first test samples."""
    images = type(module).__name__ != "CausalLM"
    samples = Samples(4, 3, images)
    batch = {name: column[:4] for name, column in samples.columns.items()}
    logits = module.eval().compute_outputs(batch)["logits"].flatten().double()
    return [round(value, 7) for value in logits[:: max(1, len(logits) // 16)][:16].tolist()]


def export_teacher(dense: Path, folder: Path) -> Path:
    """Export the dense checkpoint as a transformers folder."""
    module = pangu_modules.CausalLM.load_from_checkpoint(dense, weights_only=True)
    module.export(folder)
    return folder


def main(folder: Path) -> None:
    """Write all checkpoints, and ``outputs.json``: what each checkpoint and the end of its run compute."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {}
    with tempfile.TemporaryDirectory() as temporary:
        teacher = None
        for name, run in RUNS.items():
            path, module = folder / f"{name}.ckpt", build_module(run)
            torch.manual_seed(1)
            fit(run, module, Path(temporary) / name, SaveOnce(path, run.final), teacher=teacher)
            loaded = getattr(pangu_modules, run.module).load_from_checkpoint(path, weights_only=True)
            numbers[name] = {"checkpoint": outputs_of(loaded), "end": outputs_of(module)}
            if name == "dense":
                teacher = export_teacher(path, Path(temporary) / "teacher")
            print(name, path.stat().st_size)
    (folder / "outputs.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
