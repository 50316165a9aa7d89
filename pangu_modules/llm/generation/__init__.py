"""Sampling text: prompts, the engine in this process, servers, speculative decoding."""
