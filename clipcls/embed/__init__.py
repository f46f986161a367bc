"""Turn texts and pictures into features, in batches and with a cache.

`texts` and `images` are the two pipelines. They take a model that `lazy_encoder` found and open it for the first input
that isn't cached, so that a run with only cached inputs imports no torch. `read_ahead` reads the list of images on a
thread of its own, `batches` keeps batches within the device's memory, `execution` holds the settings of how a run is
carried out, `cores` counts the cores.
"""
