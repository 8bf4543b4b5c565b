"""Weight files to and from flat dictionaries of numpy arrays."""

from corrq_jax.readers.files import open_weights, read_weights, write_weights

__all__ = ["open_weights", "read_weights", "write_weights"]
