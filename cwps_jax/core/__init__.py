"""Pure functions over parameter trees: the method itself. Imports jax and numpy only."""
