"""DWM on SmolLM2-135M: training goes on on a mixture that is half shuffled or foreign text (arXiv:2507.16178)."""

from callbacks import DWMReweighting
from datamodules import Domain, MixtureData
from pangu_modules import CausalLM, DataWeightingModel, DWMConfig, OptimizerConfig, Recipe

recipe = Recipe(
    module=CausalLM.Config(
        model="smollm2",
        optimizer=OptimizerConfig(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, warmup_share=0.1),
    ),
    data=MixtureData.Config(
        domains={
            "prose": Domain(share=0.5),
            "shuffled": Domain(corruption="shuffled_words", share=0.25),
            "cipher": Domain(corruption="cipher", share=0.25),
        },
        sequence_length=128,
        batch_size=8,
        eval_batch_size=8,
    ),
    callbacks={
        "dwm": DWMReweighting.Config(
            method=DWMConfig(
                model=DataWeightingModel.Config(encoder="losses", floor=0.0, score_limit=3.0),
                dwm_lr=5e-3,
                fd_scale=0.1,  # 1e-2, spread over 135 M weights, moves losses by a few units in the last place
            ),
            num_rounds=6,
            lm_in_phase_a="real",
            dwm_steps=2,
            val_batch_size=8,
        )
    },
    trainer={"max_steps": 60, "val_check_interval": 30, "gradient_clip_val": 1.0},
    cost="20 minutes on two cores",
)

if __name__ == "__main__":
    recipe.main()
