"""Callbacks for mixtures of experts: balance and load."""
