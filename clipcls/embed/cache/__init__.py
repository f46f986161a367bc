"""The cache: features of texts and images, facts of models and fingerprints of files, in one SQLite file."""
