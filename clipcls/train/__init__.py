"""Training of dual encoders: from a table of pictures and captions to a model folder that `predict` reads."""
