"""Pure jitted functions on arrays: density, levels, correlation, codes. Imports jax and numpy only."""
