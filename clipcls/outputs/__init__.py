"""From predictions to files and back: formats, resuming, part files, sorting."""
