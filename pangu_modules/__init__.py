"""The importable library: configurations, recipes, LightningModules and the mathematics of the methods.

Public names are imported on first use, so that ``from pangu_modules import ScaleNetConfig`` costs only what it needs.
"""

from typing import TYPE_CHECKING

from pangu_modules import bare_help
from pangu_modules.lazy import lazy_exports

if TYPE_CHECKING:
    from pangu_modules.config import Config as Config
    from pangu_modules.config import Configurable as Configurable
    from pangu_modules.llm.causal_lm import CausalLM as CausalLM
    from pangu_modules.llm.generation import GenerationEngine as GenerationEngine
    from pangu_modules.llm.lora import LoRAConfig as LoRAConfig
    from pangu_modules.llm.pruning.calibration import CalibrationConfig as CalibrationConfig
    from pangu_modules.llm.pruning.pangu_light_config import ClapConfig as ClapConfig
    from pangu_modules.llm.pruning.pangu_light_config import PanguLightConfig as PanguLightConfig
    from pangu_modules.llm.pruning.shapes import LayerSizes as LayerSizes
    from pangu_modules.llm.pruning.shapes import ShapePlan as ShapePlan
    from pangu_modules.llm.pruning.short_gpt import ShortGPTConfig as ShortGPTConfig
    from pangu_modules.llm.pruning.slimllm import SlimLLMConfig as SlimLLMConfig
    from pangu_modules.llm.pruning.target import TargetShape as TargetShape
    from pangu_modules.llm.weighting.model import DataWeightingModel as DataWeightingModel
    from pangu_modules.module import PanguModule as PanguModule
    from pangu_modules.objectives import Objective as Objective
    from pangu_modules.optim import OptimizerConfig as OptimizerConfig
    from pangu_modules.recipe import Recipe as Recipe
    from pangu_modules.recipe import Stage as Stage
    from pangu_modules.report import RunReport as RunReport
    from pangu_modules.structure import Plan as Plan
    from pangu_modules.vision.classifier import ImageClassifier as ImageClassifier
    from pangu_modules.vision.classifier import ScaleNetClassifier as ScaleNetClassifier
    from pangu_modules.vision.scalenet import ScaleNetConfig as ScaleNetConfig
    from pangu_modules.vision.scalenet import expand_depth as expand_depth

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "CalibrationConfig": "pangu_modules.llm.pruning.calibration",
        "CausalLM": "pangu_modules.llm.causal_lm",
        "ClapConfig": "pangu_modules.llm.pruning.pangu_light_config",
        "Config": "pangu_modules.config",
        "Configurable": "pangu_modules.config",
        "DataWeightingModel": "pangu_modules.llm.weighting.model",
        "GenerationEngine": "pangu_modules.llm.generation",
        "ImageClassifier": "pangu_modules.vision.classifier",
        "LayerSizes": "pangu_modules.llm.pruning.shapes",
        "LoRAConfig": "pangu_modules.llm.lora",
        "Objective": "pangu_modules.objectives",
        "OptimizerConfig": "pangu_modules.optim",
        "PanguLightConfig": "pangu_modules.llm.pruning.pangu_light_config",
        "PanguModule": "pangu_modules.module",
        "Plan": "pangu_modules.structure",
        "Recipe": "pangu_modules.recipe",
        "RunReport": "pangu_modules.report",
        "ScaleNetClassifier": "pangu_modules.vision.classifier",
        "ScaleNetConfig": "pangu_modules.vision.scalenet",
        "ShapePlan": "pangu_modules.llm.pruning.shapes",
        "ShortGPTConfig": "pangu_modules.llm.pruning.short_gpt",
        "SlimLLMConfig": "pangu_modules.llm.pruning.slimllm",
        "Stage": "pangu_modules.recipe",
        "TargetShape": "pangu_modules.llm.pruning.target",
        "expand_depth": "pangu_modules.vision.scalenet",
    },
)

bare_help.answer_if_asked()
