"""Language models themselves: loading them, the parts of their decoders, perplexity."""
