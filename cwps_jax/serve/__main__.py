"""Serves the tasks of a pool over HTTP: ``python -m cwps_jax.serve POOL``; see docs/serving.md."""

from cwps_jax.server.command import run

if __name__ == "__main__":
    run()
