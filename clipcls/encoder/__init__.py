"""The dual encoder: `sources`, `preprocess` and `hub` find a model, `weights` loads it, `encoder` computes features.

`copies` keeps weights that are slow to open in a quicker format. `padding`, `attention` and `first_token` spare work
without a change of the features.
"""

from clipcls.encoder.encoder import Encoder, choose_device, choose_precision, load_encoder, open_encoder
from clipcls.encoder.sources import ModelFiles, locate

__all__ = [
    "Encoder",
    "ModelFiles",
    "choose_device",
    "choose_precision",
    "load_encoder",
    "locate",
    "open_encoder",
]
