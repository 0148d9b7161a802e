"""A bank of tasks on the network: requests of many clients joined into batches of many tasks."""
