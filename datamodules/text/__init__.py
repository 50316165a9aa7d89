"""Text: running text, conversations, mixtures of domains, and what reads and tokenizes them."""
