"""From text to one global batch. Knows nothing of models, and imports neither jax nor grain."""
