"""Sampling and scoring text: the engine, its decoding in this process, servers, and the store of samples."""
