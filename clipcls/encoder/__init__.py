"""The dual encoder: model files found (`sources`, `preprocess`, `hub`), weights loaded (`weights`), features computed (`encoder`)."""

from clipcls.encoder.encoder import Encoder, load_encoder
from clipcls.encoder.sources import ModelFiles, locate

__all__ = ["Encoder", "ModelFiles", "load_encoder", "locate"]
