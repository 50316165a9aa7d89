"""Samples of language models as training data: answers alone, or with what a teacher says of each token."""
