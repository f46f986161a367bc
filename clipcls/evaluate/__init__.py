"""How good the answers are on labelled pictures: metrics, confusion, comparison, and fitting a calibration."""
