"""Read label files and prompt sets, and keep the words that a model knows."""
