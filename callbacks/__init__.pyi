# Written from pangu_modules/common/registry.py by `make tables`.
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
