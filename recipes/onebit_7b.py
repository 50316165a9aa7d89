"""BinaryLLM at the scale of LLaMA2-7B, of the paper's appendix (arXiv:2508.06974)."""

from recipes.onebit_3b import recipe as base

LLAMA2_7B = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}

recipe = base.derive(
    module={"model_args": LLAMA2_7B},
    data={"tokenizer": "meta-llama/Llama-2-7b-hf"},
    reference={"parameters": 6_738_415_616, "binarized_weights": 6_476_005_376, "row_scales": 1_359_872},
)

if __name__ == "__main__":
    recipe.main()
