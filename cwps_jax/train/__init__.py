"""Training: state, one step a stage, the loop over stages, evaluation."""
