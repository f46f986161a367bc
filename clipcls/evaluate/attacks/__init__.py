"""Measure how answers hold where pictures are changed: by writing in them, by faults, or by noise made for the model."""
