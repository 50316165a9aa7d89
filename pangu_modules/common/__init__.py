"""What everything uses and what uses nothing of ours: configurations, errors, names, files, the cache."""
