"""Training: state, one step for each stage, the loop over stages, evaluation."""
