"""Many tasks from one backbone: each stored row is once on the device, in the bits in which it is stored."""

from cwps_jax.bank.bank import Bank
from cwps_jax.bank.entries import Described

__all__ = ["Bank", "Described"]
