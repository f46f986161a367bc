"""Answer over HTTP, in the dialects that clients already speak."""
