"""The search for the stored channels of a composite parent, on the host, in NumPy."""
