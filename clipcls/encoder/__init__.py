"""The dual encoder: `sources`, `preprocess` and `hub` find a model, `weights` loads it, `encoder` computes features.

`copies` keeps weights that are slow to open in a quicker format. `padding`, `attention` and `first_token` spare work
without a change of the features.
"""

from clipcls.encoder.encoder import Encoder, load_encoder
from clipcls.encoder.sources import ModelFiles, locate

__all__ = ["Encoder", "ModelFiles", "load_encoder", "locate"]
