"""Look at a model, its configuration, weights, labels and prompts before a run: findings, no exceptions."""
