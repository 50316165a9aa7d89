"""DWM at the paper's scale: a 370M Llama on 30B tokens of SlimPajama, LAMBADA as target (arXiv:2507.16178)."""

from callbacks import DWMReweighting
from datamodules import Domain, MixtureData
from pangu_modules import CausalLM, DWMConfig, OptimizerConfig, Recipe

LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
BATCH, ACCUMULATED = 32, 64  # weights are relative within a batch of 32; 2048 sequences a step

# The paper's learning rate, batch and number of updates could not be read: these are the usual ones of this size.
recipe = Recipe(
    module=CausalLM.Config(
        architecture="llama",
        model_args=LLAMA,
        optimizer=OptimizerConfig(lr=5e-4, betas=(0.9, 0.95), weight_decay=0.1, warmup_share=0.05),
    ),
    data=MixtureData.Config(
        domains={
            "slimpajama": Domain(source="data/slimpajama"),
            "lambada": Domain(source="data/lambada.jsonl", share=0),  # held out whole: the target
        },
        target=("lambada",),
        test=("slimpajama",),
        test_share=0.001,
        tokenizer="data/tokenizer",
        sequence_length=1024,
        batch_size=BATCH,
    ),
    callbacks={"dwm": DWMReweighting.Config(method=DWMConfig(dwm_lr=1e-4, fd_scale=0.1), val_batch_size=32)},
    trainer={  # 30e9 tokens / (2048 x 1024) a step
        "max_steps": 14305,
        "accumulate_grad_batches": ACCUMULATED,
        "gradient_clip_val": 1.0,
        "precision": "bf16-mixed",
    },
    cost="paper scale",
    reference={"parameters": 373_867_520},
)

if __name__ == "__main__":
    recipe.main()
