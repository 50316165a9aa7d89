"""Claims: each method against its baselines on several seeds, with verdicts that take the noise into account."""
