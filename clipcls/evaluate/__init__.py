"""How good models are on pictures with labels or captions: metrics, confusion, comparison, retrieval, calibration."""
