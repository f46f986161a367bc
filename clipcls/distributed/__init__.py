"""One job over many processes and machines, by Ray Data (the extra `ray`).

    inputs ──> plan: parts ──> Ray Data: an actor pool ──> a file of results for each part
                                 (Worker: the `Classifier` of a run on one machine)

`plan` cuts the input into parts; `work` is what a worker does with one, and sends back the rows as its file is to have
them; `model_files` brings the model to nodes that don't see its files, into a folder of the `node`; `cluster` wires
them into Ray. `run` is what the machine does that a run is started on, and alone writes, by `part_files`. A part's file
is there whole or not at all, and a part that has its file is done: so a part may be tried as often as machines fail,
and a run be ended and gone on with, without a row twice.
"""
