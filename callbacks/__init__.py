"""Callbacks: the methods' schedules over training, and what every recipe has (exact resume)."""

from typing import TYPE_CHECKING

from pangu_modules.common.lazy import lazy_exports

if TYPE_CHECKING:
    from callbacks.batch_weighting import BatchWeighting as BatchWeighting
    from callbacks.distillation import Distillation as Distillation
    from callbacks.dwm_reweighting import DWMReweighting as DWMReweighting
    from callbacks.expert_load import ExpertLoad as ExpertLoad
    from callbacks.influence_selection import InfluenceSelection as InfluenceSelection
    from callbacks.pangu_light_pruning import PanguLightPruning as PanguLightPruning
    from callbacks.pangu_light_pruning import PostNormAbsorption as PostNormAbsorption
    from callbacks.progressive_binarization import ProgressiveBinarization as ProgressiveBinarization
    from callbacks.router_balancing import RouterBalancing as RouterBalancing
    from callbacks.structured_pruning import LayerDropping as LayerDropping
    from callbacks.structured_pruning import StructuredPruning as StructuredPruning
    from callbacks.weight_average import WeightAverage as WeightAverage
    from pangu_modules.engine.exact_resume import ExactResume as ExactResume
    from pangu_modules.engine.resume_checkpoint import ResumeCheckpoint as ResumeCheckpoint
    from pangu_modules.training.callback import RecipeCallback as RecipeCallback

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "BatchWeighting": "callbacks.batch_weighting",
        "DWMReweighting": "callbacks.dwm_reweighting",
        "Distillation": "callbacks.distillation",
        "ExactResume": "pangu_modules.engine.exact_resume",
        "ExpertLoad": "callbacks.expert_load",
        "InfluenceSelection": "callbacks.influence_selection",
        "LayerDropping": "callbacks.structured_pruning",
        "PanguLightPruning": "callbacks.pangu_light_pruning",
        "PostNormAbsorption": "callbacks.pangu_light_pruning",
        "ProgressiveBinarization": "callbacks.progressive_binarization",
        "RecipeCallback": "pangu_modules.training.callback",
        "ResumeCheckpoint": "pangu_modules.engine.resume_checkpoint",
        "RouterBalancing": "callbacks.router_balancing",
        "StructuredPruning": "callbacks.structured_pruning",
        "WeightAverage": "callbacks.weight_average",
    },
)
