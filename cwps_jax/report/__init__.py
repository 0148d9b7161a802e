"""What a person sees of a run: progress, results.json, the table and the pictures."""
