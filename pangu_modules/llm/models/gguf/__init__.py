"""GGUF, the file format of llama.cpp: what its keys and tensors mean for transformers' models, and reading it."""
