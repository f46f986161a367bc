"""Label files, prompt sets, and the words that a model knows."""
