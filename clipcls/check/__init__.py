"""Check a model, its configuration, weights, labels and prompts before a run; faults become findings, not errors."""
