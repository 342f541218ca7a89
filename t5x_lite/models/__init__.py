"""Transformers as pure functions; the only folder that imports flax."""

from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.model import Model
from t5x_lite.models.transformer import stack_layers, unstack_layers

__all__ = ["Model", "TransformerConfig", "stack_layers", "unstack_layers"]
