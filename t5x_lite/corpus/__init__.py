"""Raw documents -> a clean, deduplicated, documented dataset. Imports neither jax nor, here, Beam.

readers -> steps (repair, language, filters, personal data) -> duplicates -> a TFDS dataset and its
data card; pipeline.py says how that runs on Apache Beam.
"""
