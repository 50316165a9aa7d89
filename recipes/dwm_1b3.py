"""DWM transferred: a 1.3B Llama with the weighting models of the 370M run, round by round (arXiv:2507.16178)."""

from recipes.dwm_370m import recipe as base

recipe = base.derive(
    module={
        "model_args": {
            "vocab_size": 32000,
            "hidden_size": 2048,
            "intermediate_size": 5504,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": False,
        }
    },
    callbacks={"dwm": {"frozen": "runs/dwm_370m/version_0"}},
    reference={"parameters": 1_345_423_360},
)

if __name__ == "__main__":
    recipe.main()
