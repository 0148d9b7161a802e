"""The output of a run for people: progress, results.json, the table and the pictures."""
