"""Weight files to and from flat dictionaries of numpy arrays."""

from corrq_jax.readers.files import read_weights, write_weights

__all__ = ["read_weights", "write_weights"]
