"""Many tasks at work from one backbone."""
