"""The dual encoder: `sources`, `preprocess` and `hub` find a model, `weights` loads it, `encoder` computes features.

`copies` keeps weights that are slow to open in a quicker format. `padding`, `attention` and `first_token` spare work
without a change of the features.
"""
