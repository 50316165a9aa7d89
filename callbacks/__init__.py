"""Callbacks: the methods' schedules over training, and what every recipe has (exact resume)."""

from typing import TYPE_CHECKING

from pangu_modules.common.lazy import lazy_exports

if TYPE_CHECKING:
    from callbacks.binarization.progressive import ProgressiveBinarization as ProgressiveBinarization
    from callbacks.distillation import Distillation as Distillation
    from callbacks.mixture.expert_load import ExpertLoad as ExpertLoad
    from callbacks.mixture.router_balancing import RouterBalancing as RouterBalancing
    from callbacks.pruning.pangu_light import PanguLightPruning as PanguLightPruning
    from callbacks.pruning.pangu_light import PostNormAbsorption as PostNormAbsorption
    from callbacks.pruning.structured import LayerDropping as LayerDropping
    from callbacks.pruning.structured import StructuredPruning as StructuredPruning
    from callbacks.weight_average import WeightAverage as WeightAverage
    from callbacks.weighting.batch_weighting import BatchWeighting as BatchWeighting
    from callbacks.weighting.influence_selection import InfluenceSelection as InfluenceSelection
    from callbacks.weighting.reweighting import DWMReweighting as DWMReweighting
    from pangu_modules.engine.exact_resume import ExactResume as ExactResume
    from pangu_modules.engine.resume_checkpoint import ResumeCheckpoint as ResumeCheckpoint
    from pangu_modules.training.callback import RecipeCallback as RecipeCallback

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "BatchWeighting": "callbacks.weighting.batch_weighting",
        "DWMReweighting": "callbacks.weighting.reweighting",
        "Distillation": "callbacks.distillation",
        "ExactResume": "pangu_modules.engine.exact_resume",
        "ExpertLoad": "callbacks.mixture.expert_load",
        "InfluenceSelection": "callbacks.weighting.influence_selection",
        "LayerDropping": "callbacks.pruning.structured",
        "PanguLightPruning": "callbacks.pruning.pangu_light",
        "PostNormAbsorption": "callbacks.pruning.pangu_light",
        "ProgressiveBinarization": "callbacks.binarization.progressive",
        "RecipeCallback": "pangu_modules.training.callback",
        "ResumeCheckpoint": "pangu_modules.engine.resume_checkpoint",
        "RouterBalancing": "callbacks.mixture.router_balancing",
        "StructuredPruning": "callbacks.pruning.structured",
        "WeightAverage": "callbacks.weight_average",
    },
)
