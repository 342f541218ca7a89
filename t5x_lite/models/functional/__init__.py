"""The mathematics of the models, as functions on arrays. Nothing here knows flax.

Dimension letters, in names and einsum strings throughout ``models/``:
  B batch, T query length, S key length, D embed, N heads, K kv heads, G = N / K,
  H head_dim, F mlp, V vocab, L layers.
"""
