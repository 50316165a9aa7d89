"""Language models: the causal-LM module, its losses, loading, generation and export."""
