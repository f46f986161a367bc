"""Writes predictions to files and reads them back: formats, resuming, part files, sorting."""
