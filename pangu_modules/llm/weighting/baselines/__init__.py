"""What DWM is compared with: weights without learning, n-gram scores, influence models."""
