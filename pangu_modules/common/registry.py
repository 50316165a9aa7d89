"""The registry: where each public name, plan, export format and model architecture of this library is defined.

It is the one list that a new method is added to: ``kind -> name -> "module:attribute"``. Nothing is imported until a
name is asked for. `pangu_modules`, `callbacks` and `datamodules` are the public names of these packages; their stub
files (``__init__.pyi``) are written from here by ``make tables``.
"""

from __future__ import annotations

import importlib
from typing import Any

from pangu_modules.common.names import nearest

TARGETS: dict[str, dict[str, str]] = {
    # Changes of structure, by the `kind` that checkpoints store.
    "plan": {
        "absorb": "pangu_modules.llm.pruning.pangu_light.absorb:AbsorbPlan",
        "binarize": "pangu_modules.llm.onebit.plan:BinarizePlan",
        "lora": "pangu_modules.llm.lora:LoRAPlan",
        "scalenet": "pangu_modules.vision.scalenet.plan:ScaleNetPlan",
        "shape": "pangu_modules.llm.pruning.plan:ShapePlan",
        "upcycle": "pangu_modules.llm.moge.upcycling:UpcyclePlan",
    },
    # Export formats of language models: functions (module, folder, options); the first is the default.
    "export format": {
        "transformers": "pangu_modules.llm.export.transformers:export",
        "gguf": "pangu_modules.llm.export.gguf:export_gguf",
        "gguf_f16": "pangu_modules.llm.export.gguf:export_gguf_f16",
        "gguf_q8_0": "pangu_modules.llm.export.gguf:export_gguf_q8_0",
        "packed": "pangu_modules.llm.onebit.packing:export_packed",
        "gguf_q1_0": "pangu_modules.llm.onebit.gguf:export_q1_0",
        "gguf_tq1_0": "pangu_modules.llm.onebit.gguf:export_tq1_0",
        "gguf_tq2_0": "pangu_modules.llm.onebit.gguf:export_tq2_0",
    },
    # What stages that make data do, by their kind: functions (production), see `pangu_modules.common.production`.
    "data stage": {
        "generate": "pangu_modules.llm.generation.store.producing:generate",
        "score": "pangu_modules.llm.generation.store.scores:score",
    },
    # What `export` of such a stage writes: functions (folder of the data, output, choices).
    "data export": {
        "generate": "pangu_modules.llm.generation.store.data_card:export_rollouts",
        "score": "pangu_modules.llm.generation.store.data_card:export_scores",
    },
    # Devices that Lightning does not know: functions that complete a Trainer's arguments for them.
    "accelerator": {"npu": "pangu_modules.ascend:trainer_arguments"},
    # transformers' model types of this library; importing the module makes transformers know them.
    "architecture": {
        "PanguProMoE": "pangu_modules.llm.moge.modeling:PanguProMoEForCausalLM",
        "sandwich_llama": "pangu_modules.llm.models.sandwich:SandwichLlamaForCausalLM",
    },
    # Verifiers of answers, by the label of a task: functions (text, reference) -> Score, which run in a worker.
    "verifier": {
        "math": "pangu_modules.verification.math_answers:verify",
        "reasoning_gym": "pangu_modules.verification.gym_answers:verify",
    },
    # Where a device's fused operators are put: dictionaries by device type.
    "seam": {
        "cross_entropy": "pangu_modules.llm.losses:CROSS_ENTROPY",
        "grouped_matmul": "pangu_modules.llm.moge.grouped_matmul:GROUPED_MATMUL",
        "grouped_routing": "pangu_modules.llm.moge.routing:GROUPED_ROUTING",
    },
    # Public names of `pangu_modules`.
    "pangu_modules": {
        "AbsorbConfig": "pangu_modules.llm.pruning.pangu_light.absorb:AbsorbConfig",
        "AbsorbPlan": "pangu_modules.llm.pruning.pangu_light.absorb:AbsorbPlan",
        "BalancingConfig": "pangu_modules.llm.moge.auxiliary_loss:BalancingConfig",
        "BaselineConfig": "pangu_modules.llm.weighting.baselines.weights:BaselineConfig",
        "BinarizePlan": "pangu_modules.llm.onebit.plan:BinarizePlan",
        "CachedDistillationConfig": "pangu_modules.llm.distillation.cached:CachedDistillationConfig",
        "CalibrationConfig": "pangu_modules.llm.calibration.windows:CalibrationConfig",
        "CausalLM": "pangu_modules.llm.causal_lm:CausalLM",
        "ClapConfig": "pangu_modules.llm.pruning.pangu_light.config:ClapConfig",
        "Config": "pangu_modules.common.config:Config",
        "Configurable": "pangu_modules.common.config:Configurable",
        "DWMConfig": "pangu_modules.llm.weighting.config:DWMConfig",
        "DataWeightingModel": "pangu_modules.llm.weighting.model:DataWeightingModel",
        "DistillationConfig": "pangu_modules.llm.distillation.teacher:DistillationConfig",
        "ExpertParallelStrategy": "pangu_modules.llm.moge.parallel.strategy:ExpertParallelStrategy",
        "GenerationEngine": "pangu_modules.llm.generation.engine:GenerationEngine",
        "GenerateStage": "pangu_modules.engine.data_stages:GenerateStage",
        "GroupedExperts": "pangu_modules.llm.moge.experts:GroupedExperts",
        "ImageClassifier": "pangu_modules.vision.classifier:ImageClassifier",
        "InfluenceConfig": "pangu_modules.llm.weighting.baselines.influence:InfluenceConfig",
        "LayerSizes": "pangu_modules.llm.pruning.plan:LayerSizes",
        "LoRAConfig": "pangu_modules.llm.lora:LoRAConfig",
        "LoRAPlan": "pangu_modules.llm.lora:LoRAPlan",
        "LoadConfig": "pangu_modules.llm.moge.statistics:LoadConfig",
        "LoadMeter": "pangu_modules.llm.moge.statistics:LoadMeter",
        "MoGEBlock": "pangu_modules.llm.moge.block:MoGEBlock",
        "Objective": "pangu_modules.training.objectives:Objective",
        "OneBitConfig": "pangu_modules.llm.onebit.config:OneBitConfig",
        "OptimizerConfig": "pangu_modules.training.optim:OptimizerConfig",
        "PanguLightConfig": "pangu_modules.llm.pruning.pangu_light.config:PanguLightConfig",
        "PanguModule": "pangu_modules.training.module:PanguModule",
        "PanguProMoEConfig": "pangu_modules.llm.moge.configuration:PanguProMoEConfig",
        "PanguProMoEForCausalLM": "pangu_modules.llm.moge.modeling:PanguProMoEForCausalLM",
        "ParallelAdapter": "pangu_modules.vision.scalenet.sharing:ParallelAdapter",
        "Plan": "pangu_modules.training.structure:Plan",
        "Recipe": "pangu_modules.engine.recipe:Recipe",
        "RolloutStore": "pangu_modules.llm.generation.store.rollouts:RolloutStore",
        "Rollout": "pangu_modules.llm.generation.records:Rollout",
        "Router": "pangu_modules.llm.moge.router:Router",
        "RunReport": "pangu_modules.report.run_report:RunReport",
        "SandwichLlamaConfig": "pangu_modules.llm.models.sandwich:SandwichLlamaConfig",
        "SandwichLlamaForCausalLM": "pangu_modules.llm.models.sandwich:SandwichLlamaForCausalLM",
        "ScaleNetClassifier": "pangu_modules.vision.scalenet.classifier:ScaleNetClassifier",
        "ScaleNetConfig": "pangu_modules.vision.scalenet.config:ScaleNetConfig",
        "ScaleNetPlan": "pangu_modules.vision.scalenet.plan:ScaleNetPlan",
        "ScaleNetTraining": "pangu_modules.vision.scalenet.config:ScaleNetTraining",
        "ScoreStage": "pangu_modules.engine.data_stages:ScoreStage",
        "SequenceScores": "pangu_modules.llm.generation.records:SequenceScores",
        "ShapePlan": "pangu_modules.llm.pruning.plan:ShapePlan",
        "ShortGPTConfig": "pangu_modules.llm.pruning.short_gpt:ShortGPTConfig",
        "SlimLLMConfig": "pangu_modules.llm.pruning.slimllm.config:SlimLLMConfig",
        "Stage": "pangu_modules.engine.spec:Stage",
        "TargetShape": "pangu_modules.llm.pruning.pangu_light.target:TargetShape",
        "UpcycleConfig": "pangu_modules.llm.moge.upcycling:UpcycleConfig",
        "UpcyclePlan": "pangu_modules.llm.moge.upcycling:UpcyclePlan",
        "Verification": "pangu_modules.verification.routing:Verification",
        "absorb_post_norms": "pangu_modules.llm.pruning.pangu_light.absorb:absorb_post_norms",
        "added_parameters": "pangu_modules.vision.scalenet.expansion:added_parameters",
        "auxiliary_objective": "pangu_modules.llm.moge.auxiliary_loss:auxiliary_objective",
        "distillation_loss": "pangu_modules.llm.distillation.loss:distillation_loss",
        "distillation_objective": "pangu_modules.llm.distillation.teacher:distillation_objective",
        "drop_layers": "pangu_modules.llm.pruning.short_gpt:drop_layers",
        "expand_depth": "pangu_modules.vision.scalenet.expansion:expand_depth",
        "finalize_module": "pangu_modules.llm.onebit.finalize:finalize_module",
        "imbalance_score": "pangu_modules.llm.moge.statistics:imbalance_score",
        "layer_mapping": "pangu_modules.vision.scalenet.expansion:layer_mapping",
        "load_causal_lm": "pangu_modules.llm.models.loading:load_causal_lm",
        "load_packed": "pangu_modules.llm.onebit.packing:load_packed",
        "load_tokenizer": "pangu_modules.llm.models.tokenizer_loading:load_tokenizer",
        "per_sequence_loss": "pangu_modules.llm.losses:per_sequence_loss",
        "prune_pangu_light": "pangu_modules.llm.pruning.pangu_light.pipeline:prune_pangu_light",
        "prune_slimllm": "pangu_modules.llm.pruning.slimllm.walk:prune_slimllm",
        "repeat_stages": "pangu_modules.engine.rounds:repeat_stages",
        "target_parameters": "pangu_modules.llm.pruning.pangu_light.target:target_parameters",
        "write_report": "pangu_modules.report.writing:write_report",
    },
    # Public names of `callbacks`.
    "callbacks": {
        "BatchWeighting": "callbacks.weighting.batch_weighting:BatchWeighting",
        "DWMReweighting": "callbacks.weighting.reweighting:DWMReweighting",
        "Distillation": "callbacks.distillation:Distillation",
        "EarlyStopping": "callbacks.early_stopping:EarlyStopping",
        "ExactResume": "pangu_modules.engine.exact_resume:ExactResume",
        "ExpertLoad": "callbacks.mixture.expert_load:ExpertLoad",
        "GradientNorm": "callbacks.gradient_norm:GradientNorm",
        "InfluenceSelection": "callbacks.weighting.influence_selection:InfluenceSelection",
        "LayerDropping": "callbacks.pruning.structured:LayerDropping",
        "LightningCallback": "pangu_modules.engine.lightning_callback:LightningCallback",
        "OfflineDistillation": "callbacks.offline_distillation:OfflineDistillation",
        "OnlineDistillation": "callbacks.online_distillation:OnlineDistillation",
        "PanguLightPruning": "callbacks.pruning.pangu_light:PanguLightPruning",
        "PostNormAbsorption": "callbacks.pruning.pangu_light:PostNormAbsorption",
        "ProgressiveBinarization": "callbacks.binarization.progressive:ProgressiveBinarization",
        "RecipeCallback": "pangu_modules.training.callback:RecipeCallback",
        "ResumeCheckpoint": "pangu_modules.engine.resume_checkpoint:ResumeCheckpoint",
        "RouterBalancing": "callbacks.mixture.router_balancing:RouterBalancing",
        "SampledAccuracy": "callbacks.sampled_accuracy:SampledAccuracy",
        "StructuredPruning": "callbacks.pruning.structured:StructuredPruning",
        "WeightAverage": "callbacks.weight_average:WeightAverage",
    },
    # Public names of `datamodules`.
    "datamodules": {
        "ChatData": "datamodules.text.chat:ChatData",
        "ColumnSums": "datamodules.sums.column_sums:ColumnSums",
        "DataModule": "datamodules.base:DataModule",
        "DigitsData": "datamodules.images.digits:DigitsData",
        "DistillationData": "datamodules.rollouts.taught:DistillationData",
        "Domain": "datamodules.text.mixture:Domain",
        "ImageFolderData": "datamodules.images.folders:ImageFolderData",
        "MixtureData": "datamodules.text.mixture:MixtureData",
        "ReasoningTasks": "datamodules.reasoning.gym:ReasoningTasks",
        "ResumableLoader": "datamodules.loader:ResumableLoader",
        "RolloutData": "datamodules.rollouts.answers:RolloutData",
        "SelectedMixtureData": "datamodules.text.selected_mixture:SelectedMixtureData",
        "SmallVocabularyData": "datamodules.text.small_vocabulary:SmallVocabularyData",
        "TaskFile": "datamodules.reasoning.files:TaskFile",
        "TextData": "datamodules.text.running:TextData",
        "calibration_batches": "datamodules.calibration:calibration_batches",
        "calibration_sequences": "datamodules.calibration:calibration_sequences",
        "shared_ngrams": "datamodules.text.ngrams:shared_ngrams",
    },
}


def names(kind: str) -> tuple[str, ...]:
    """Return the names registered under a kind, in the registry's order."""
    return tuple(TARGETS[kind])


def load(kind: str, name: str) -> Any:
    """Import and return what a name stands for.

    Raises:
        ValueError: there is no such name; the nearest one is in the message.
    """
    if name not in TARGETS[kind]:
        known = names(kind)
        raise ValueError(f"unknown {kind} {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")
    module, _, attribute = TARGETS[kind][name].partition(":")
    return getattr(importlib.import_module(module), attribute)
