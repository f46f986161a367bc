"""Measure how answers hold where pictures are changed: by writing, by faults, or by noise made for the model."""
