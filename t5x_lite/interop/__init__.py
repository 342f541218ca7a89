"""Weights in and out: Hugging Face folders, T5X checkpoints, and this package's own.

Each format is read as named tensors that aren't in memory yet (tensors.py). A family's table
(t5.py, llama.py, gpt2.py) says which tensor is which parameter, and is used in both directions
(weight_maps.py); huggingface.py, t5x.py and runs.py are the three formats; pretrained.py is the
door.
"""
