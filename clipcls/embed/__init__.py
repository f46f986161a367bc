"""Texts and pictures to features: batched, ahead of the model, cached.

`texts` and `images` are the two pipelines. They take a model that `lazy_encoder` found and open it at the first thing
that isn't cached, so that a run with only hits imports no torch. `read_ahead` reads the input of the second on a thread
of its own, `batches` keeps batches within the device's memory, `execution` says how a run is carried out, `cores` on
how many cores.
"""
