"""Mixtures over several processes: dispatch of tokens, sharded experts, Lightning's strategy."""
