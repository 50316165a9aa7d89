"""The importable library: configurations, recipes, LightningModules and the mathematics of the methods.

Public names are imported on first use, so that ``from pangu_modules import ScaleNetConfig`` costs only what it needs.
"""

from typing import TYPE_CHECKING

from pangu_modules.common.lazy import lazy_exports
from pangu_modules.engine import bare_help

if TYPE_CHECKING:
    from pangu_modules.common.config import Config as Config
    from pangu_modules.common.config import Configurable as Configurable
    from pangu_modules.engine.recipe import Recipe as Recipe
    from pangu_modules.engine.recipe import Stage as Stage
    from pangu_modules.llm.calibration.windows import CalibrationConfig as CalibrationConfig
    from pangu_modules.llm.causal_lm import CausalLM as CausalLM
    from pangu_modules.llm.distillation.teacher import distillation_objective as distillation_objective
    from pangu_modules.llm.generation.engine import Completion as Completion
    from pangu_modules.llm.generation.engine import GenerationEngine as GenerationEngine
    from pangu_modules.llm.lora import LoRAConfig as LoRAConfig
    from pangu_modules.llm.lora import LoRAPlan as LoRAPlan
    from pangu_modules.llm.losses import distillation_loss as distillation_loss
    from pangu_modules.llm.losses import per_sequence_loss as per_sequence_loss
    from pangu_modules.llm.models.loading import load_causal_lm as load_causal_lm
    from pangu_modules.llm.models.loading import load_tokenizer as load_tokenizer
    from pangu_modules.llm.models.sandwich import SandwichLlamaConfig as SandwichLlamaConfig
    from pangu_modules.llm.models.sandwich import SandwichLlamaForCausalLM as SandwichLlamaForCausalLM
    from pangu_modules.llm.moge.auxiliary_loss import auxiliary_objective as auxiliary_objective
    from pangu_modules.llm.moge.block import MoGEBlock as MoGEBlock
    from pangu_modules.llm.moge.configuration import PanguProMoEConfig as PanguProMoEConfig
    from pangu_modules.llm.moge.experts import GroupedExperts as GroupedExperts
    from pangu_modules.llm.moge.modeling import PanguProMoEForCausalLM as PanguProMoEForCausalLM
    from pangu_modules.llm.moge.parallel.strategy import ExpertParallelStrategy as ExpertParallelStrategy
    from pangu_modules.llm.moge.router import Router as Router
    from pangu_modules.llm.moge.statistics import LoadMeter as LoadMeter
    from pangu_modules.llm.moge.statistics import imbalance_score as imbalance_score
    from pangu_modules.llm.moge.upcycling import UpcycleConfig as UpcycleConfig
    from pangu_modules.llm.moge.upcycling import UpcyclePlan as UpcyclePlan
    from pangu_modules.llm.onebit.config import OneBitConfig as OneBitConfig
    from pangu_modules.llm.onebit.finalize import finalize_module as finalize_module
    from pangu_modules.llm.onebit.packing import load_packed as load_packed
    from pangu_modules.llm.onebit.plan import BinarizePlan as BinarizePlan
    from pangu_modules.llm.pruning.pangu_light.absorb import AbsorbConfig as AbsorbConfig
    from pangu_modules.llm.pruning.pangu_light.absorb import AbsorbPlan as AbsorbPlan
    from pangu_modules.llm.pruning.pangu_light.absorb import absorb_post_norms as absorb_post_norms
    from pangu_modules.llm.pruning.pangu_light.config import ClapConfig as ClapConfig
    from pangu_modules.llm.pruning.pangu_light.config import PanguLightConfig as PanguLightConfig
    from pangu_modules.llm.pruning.pangu_light.target import TargetShape as TargetShape
    from pangu_modules.llm.pruning.pangu_light.target import target_parameters as target_parameters
    from pangu_modules.llm.pruning.plan import LayerSizes as LayerSizes
    from pangu_modules.llm.pruning.plan import ShapePlan as ShapePlan
    from pangu_modules.llm.pruning.short_gpt import ShortGPTConfig as ShortGPTConfig
    from pangu_modules.llm.pruning.slimllm.config import SlimLLMConfig as SlimLLMConfig
    from pangu_modules.llm.weighting.model import DataWeightingModel as DataWeightingModel
    from pangu_modules.report.run_report import RunReport as RunReport
    from pangu_modules.training.module import PanguModule as PanguModule
    from pangu_modules.training.objectives import Objective as Objective
    from pangu_modules.training.optim import OptimizerConfig as OptimizerConfig
    from pangu_modules.training.structure import Plan as Plan
    from pangu_modules.vision.classifier import ImageClassifier as ImageClassifier
    from pangu_modules.vision.classifier import ScaleNetClassifier as ScaleNetClassifier
    from pangu_modules.vision.scalenet.expansion import ScaleNetConfig as ScaleNetConfig
    from pangu_modules.vision.scalenet.expansion import ScaleNetPlan as ScaleNetPlan
    from pangu_modules.vision.scalenet.expansion import ScaleNetTraining as ScaleNetTraining
    from pangu_modules.vision.scalenet.expansion import added_parameters as added_parameters
    from pangu_modules.vision.scalenet.expansion import expand_depth as expand_depth
    from pangu_modules.vision.scalenet.expansion import layer_mapping as layer_mapping
    from pangu_modules.vision.scalenet.sharing import ParallelAdapter as ParallelAdapter

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "AbsorbConfig": "pangu_modules.llm.pruning.pangu_light.absorb",
        "AbsorbPlan": "pangu_modules.llm.pruning.pangu_light.absorb",
        "BinarizePlan": "pangu_modules.llm.onebit.plan",
        "CalibrationConfig": "pangu_modules.llm.calibration.windows",
        "CausalLM": "pangu_modules.llm.causal_lm",
        "ClapConfig": "pangu_modules.llm.pruning.pangu_light.config",
        "Completion": "pangu_modules.llm.generation.engine",
        "Config": "pangu_modules.common.config",
        "Configurable": "pangu_modules.common.config",
        "DataWeightingModel": "pangu_modules.llm.weighting.model",
        "ExpertParallelStrategy": "pangu_modules.llm.moge.parallel.strategy",
        "GenerationEngine": "pangu_modules.llm.generation.engine",
        "GroupedExperts": "pangu_modules.llm.moge.experts",
        "ImageClassifier": "pangu_modules.vision.classifier",
        "LayerSizes": "pangu_modules.llm.pruning.plan",
        "LoadMeter": "pangu_modules.llm.moge.statistics",
        "LoRAConfig": "pangu_modules.llm.lora",
        "LoRAPlan": "pangu_modules.llm.lora",
        "MoGEBlock": "pangu_modules.llm.moge.block",
        "Objective": "pangu_modules.training.objectives",
        "OneBitConfig": "pangu_modules.llm.onebit.config",
        "OptimizerConfig": "pangu_modules.training.optim",
        "PanguLightConfig": "pangu_modules.llm.pruning.pangu_light.config",
        "PanguModule": "pangu_modules.training.module",
        "ParallelAdapter": "pangu_modules.vision.scalenet.sharing",
        "PanguProMoEConfig": "pangu_modules.llm.moge.configuration",
        "PanguProMoEForCausalLM": "pangu_modules.llm.moge.modeling",
        "Plan": "pangu_modules.training.structure",
        "Recipe": "pangu_modules.engine.recipe",
        "Router": "pangu_modules.llm.moge.router",
        "RunReport": "pangu_modules.report.run_report",
        "SandwichLlamaConfig": "pangu_modules.llm.models.sandwich",
        "SandwichLlamaForCausalLM": "pangu_modules.llm.models.sandwich",
        "ScaleNetClassifier": "pangu_modules.vision.classifier",
        "ScaleNetConfig": "pangu_modules.vision.scalenet.expansion",
        "ScaleNetPlan": "pangu_modules.vision.scalenet.expansion",
        "ScaleNetTraining": "pangu_modules.vision.scalenet.expansion",
        "ShapePlan": "pangu_modules.llm.pruning.plan",
        "ShortGPTConfig": "pangu_modules.llm.pruning.short_gpt",
        "SlimLLMConfig": "pangu_modules.llm.pruning.slimllm.config",
        "Stage": "pangu_modules.engine.recipe",
        "TargetShape": "pangu_modules.llm.pruning.pangu_light.target",
        "UpcycleConfig": "pangu_modules.llm.moge.upcycling",
        "UpcyclePlan": "pangu_modules.llm.moge.upcycling",
        "absorb_post_norms": "pangu_modules.llm.pruning.pangu_light.absorb",
        "added_parameters": "pangu_modules.vision.scalenet.expansion",
        "distillation_loss": "pangu_modules.llm.losses",
        "distillation_objective": "pangu_modules.llm.distillation.teacher",
        "auxiliary_objective": "pangu_modules.llm.moge.auxiliary_loss",
        "expand_depth": "pangu_modules.vision.scalenet.expansion",
        "finalize_module": "pangu_modules.llm.onebit.finalize",
        "imbalance_score": "pangu_modules.llm.moge.statistics",
        "layer_mapping": "pangu_modules.vision.scalenet.expansion",
        "load_causal_lm": "pangu_modules.llm.models.loading",
        "load_packed": "pangu_modules.llm.onebit.packing",
        "load_tokenizer": "pangu_modules.llm.models.loading",
        "per_sequence_loss": "pangu_modules.llm.losses",
        "target_parameters": "pangu_modules.llm.pruning.pangu_light.target",
    },
)

bare_help.answer_if_asked()
