"""A bank of tasks on the network, which joins the requests of many clients into batches of many tasks."""
