"""The search: which stored channel each of a parent's channels is taken from. On the host, in NumPy."""
