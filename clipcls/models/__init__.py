"""The dual encoder: `locate`, `preprocess` and `hub` find a model, `checkpoint` loads it, `encoder` computes features.

`padding`, `attention` and `first_token` spare work without a change of the features.
"""
