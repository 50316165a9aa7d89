"""Writing and scoring text with a model in this process."""
