"""Exports of language models: formats by name, the transformers folder, GGUF."""
