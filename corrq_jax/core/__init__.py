"""Pure jitted functions on arrays: density, levels, correlation, codes; jax and numpy only."""
