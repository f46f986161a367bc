"""The compiled runtime: towers converted from torch to OpenVINO once, kept beside the cache, and run without torch.

`choice` says which runtime computes, `conversions` keeps converted towers, `convert` makes and checks them, for which
it needs torch, `engine` runs them, and `compiled` is the encoder that the rest of clipcls uses.
"""
