"""Transformers as pure functions; the only folder that imports flax."""
