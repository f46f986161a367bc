"""The dual encoder: `locate`, `preprocess` and `hub` find a model, `checkpoint` loads it, `encoder` computes features.

`padding`, `attention` and `first_token` save work without changing the features.
"""
