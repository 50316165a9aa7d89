"""Tasks of lm-evaluation-harness on a language model: what to run, running it, and the command for a folder."""
