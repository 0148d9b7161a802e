"""The pool's command line: ``python -m cwps_jax.pool``."""
