"""DWM on mixed text: a small Llama from scratch, half of whose data is of no use to it (arXiv:2507.16178)."""

from callbacks import DWMReweighting
from datamodules import MixtureData
from pangu_modules import CausalLM, DataWeightingModel, OptimizerConfig, Recipe

VOCABULARY = 1024
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}

recipe = Recipe(
    module=CausalLM.Config(
        architecture="llama",
        model_args=LLAMA,
        optimizer=OptimizerConfig(lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1, warmup_fraction=0.05),
    ),
    data=MixtureData.Config(vocab_size=VOCABULARY, sequence_length=64, batch_size=16, eval_batch_size=64),
    callbacks={
        "dwm": DWMReweighting.Config(
            model=DataWeightingModel.Config(d_model=64, n_layers=1),
            lm_in_phase_a="real",
            dwm_steps=40,
            dwm_lr=2e-3,
            val_batch_size=32,
            precondition="none",
        )
    },
    trainer={  # validated at the end of each stage
        "max_steps": 400,
        "val_check_interval": 80,
        "check_val_every_n_epoch": None,
        "gradient_clip_val": 1.0,
    },
    cost="5 minutes on two cores",
)

if __name__ == "__main__":
    recipe.main()
