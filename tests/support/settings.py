"""One tiny setting for every exported callback and every plan, over which the generic tests run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback
from old_checkpoints import LLAMA, MOGE, VIT, TinyData

import callbacks as all_callbacks
import pangu_modules

STEPS = 6
OPTIMIZER = {"lr": 0.01, "schedule": "constant", "warmup_share": 0}
CALIBRATION = {"num_samples": 4, "sequence_length": 12, "batch_size": 4}
DENSE = ("CausalLM", {"architecture": "llama", "model_args": LLAMA})
SANDWICH = (
    "CausalLM",
    {"architecture": "sandwich_llama", "model_args": {**LLAMA, "tie_word_embeddings": False}},
)
MIXTURE = ("CausalLM", {"architecture": "PanguProMoE", "model_args": MOGE})
UPCYCLE = {"num_experts": 4, "num_groups": 2, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 4}


@dataclass(frozen=True)
class Setting:
    """A module by class and configuration, and one callback by class and configuration, or none."""

    module: tuple[str, Mapping[str, Any]]
    callback: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    plans: tuple[str, ...] = ()  # kinds of plans the module holds in the end

    def build_module(self, seed: int = 0) -> Any:
        """Return the module, initialised from the seed."""
        name, config = self.module
        torch.manual_seed(seed)
        runtime = {} if name == "CausalLM" else {"num_classes": 3}
        return getattr(pangu_modules, name).Config.model_validate({**config, "optimizer": OPTIMIZER}).build(**runtime)

    def build_callback(self, name: str) -> Any:
        """Return the callback under a name."""
        return getattr(all_callbacks, str(self.callback)).Config.model_validate(self.config).build(name=name)

    @property
    def images(self) -> bool:
        """Whether the module reads images."""
        return self.module[0] != "CausalLM"


def pruning(method: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a pruning callback that measures nothing and keeps no progress."""
    return {"method": {**method, "calibration": CALIBRATION}, "progress_folder": None, "measure": False}


SETTINGS: dict[str, Setting] = {
    "average": Setting(DENSE, "WeightAverage", {"decay": 0.8}),
    "norm": Setting(DENSE, "GradientNorm", {"every_n_steps": 2}),
    "distill": Setting(DENSE, "Distillation", {"method": {"lambda_ce": 0.5}}),
    "offline": Setting(DENSE, "OfflineDistillation", {"method": {"alpha_ce": 0.5}, "measure_every": 2}),
    "slimllm": Setting(
        DENSE,
        "StructuredPruning",
        pruning({"base_share": 0.5, "pruned_layers": 1, "alpha": 0}),
        plans=("shape",),
    ),
    "drop": Setting(DENSE, "LayerDropping", pruning({"dropped_layers": 1}), plans=("shape",)),
    "light": Setting(DENSE, "PanguLightPruning", pruning({"target": {"intermediate_size": 8}}), plans=("shape",)),
    "binarize": Setting(
        DENSE,
        "ProgressiveBinarization",
        {"method": {"init": "none", "hard_tail": "none", "schedule_steps": 1.0, "phases": 2}, "measure": False},
        plans=("binarize",),
    ),
    "dwm": Setting(
        DENSE,
        "DWMReweighting",
        {
            "num_rounds": 2,
            "dwm_steps": 2,
            "val_batch_size": 4,
            "method": {"model": {"encoder": "losses", "hidden_size": 8}, "dwm_lr": 0.01},
        },
    ),
    "weighting": Setting(DENSE, "BatchWeighting", {"method": {"kind": "random", "ess": (0.6,)}, "num_rounds": 2}),
    "influence": Setting(DENSE, "InfluenceSelection", {"num_rounds": 2, "probes": 8, "val_batch_size": 4}),
    "absorb": Setting(
        SANDWICH,
        "PostNormAbsorption",
        {"method": {"enabled": True, "max_ppl_increase": 1000.0}, "calibration": CALIBRATION},
        plans=("absorb",),
    ),
    "balance": Setting(MIXTURE, "RouterBalancing", {"method": {"coefficient": 0.1, "z_coefficient": 0.01}}),
    "load": Setting(MIXTURE, "ExpertLoad", {"method": {"token_counts": (4,)}, "every_n_steps": 1}),
    "scalenet": Setting(("ScaleNetClassifier", {**VIT, "adapter_rank": 2, "pretrained": False}), plans=("scalenet",)),
    "image": Setting(("ImageClassifier", VIT)),
    "lora": Setting(("CausalLM", {**DENSE[1], "lora": {"rank": 2}}), plans=("lora",)),
    "upcycle": Setting(
        ("CausalLM", {**DENSE[1], "structure": [{"kind": "upcycle", "upcycle": UPCYCLE}]}), plans=("upcycle",)
    ),
}
ON_ONE_MODEL = [name for name, setting in SETTINGS.items() if setting.callback and setting.module is DENSE]
ON_A_MIXTURE = [name for name, setting in SETTINGS.items() if setting.module is MIXTURE]
NO_METHODS = {
    "EarlyStopping": "watches validations, of which these runs have none, see tests/callbacks",
    "ExactResume": "every run has it: here, too",
    "LightningCallback": "stands for any of Lightning's, see tests/pangu_modules/engine",
    "ResumeCheckpoint": "writes checkpoints of a recipe's run, see tests/pangu_modules/engine",
    "OnlineDistillation": "needs a teacher's folder, which no setting has: see tests/callbacks",
    "RecipeCallback": "the base class",
    "SampledAccuracy": "answers tasks at tests, of which these runs have none, see tests/callbacks",
}


def trainer_of(folder: Path, callbacks: list[Callback], steps: int = STEPS) -> lightning.Trainer:
    """Return a Trainer that writes to `folder` alone, and resumes exactly."""
    return lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=steps,
        limit_val_batches=0,
        callbacks=[*callbacks, all_callbacks.ExactResume.Config().build(name="exact_resume")],
    )


def data_of(*settings: Setting) -> TinyData:
    """Return data that all these settings can be trained on."""
    taught = any(setting.callback == "OfflineDistillation" for setting in settings)
    kind = TaughtTinyData if taught else TinyData
    data: TinyData = kind.Config(images=settings[0].images).build()
    return data


class TaughtTinyData(TinyData):
    """The same with what a teacher of three likely tokens says of each token."""

    def setup(self, stage: str | None = None) -> None:
        """Draw the samples."""
        super().setup(stage)
        for samples in (self.train_dataset, self.val_dataset, self.test_dataset, self.calibration_dataset):
            columns = samples.columns  # type: ignore[union-attr]
            tokens = columns["input_ids"]
            logprobs = torch.tensor([0.5, 0.2, 0.1]).log().expand(*tokens.shape, 3)
            columns |= {"teacher_ids": torch.stack([tokens, tokens - 1, tokens - 2], -1), "teacher_logprobs": logprobs}
            columns |= {"teacher_label_logprobs": logprobs[..., 0], "sampled_logprobs": logprobs[..., 1]}
