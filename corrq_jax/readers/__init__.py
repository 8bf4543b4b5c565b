"""Weight files to and from flat dictionaries of numpy arrays."""

from corrq_jax.readers.files import open_weights, read_weights, write_weights
from corrq_jax.readers.orbax_folder import read_checkpoint

__all__ = ["open_weights", "read_checkpoint", "read_weights", "write_weights"]
