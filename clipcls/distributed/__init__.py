"""One job over many processes and machines, by Ray Data (the extra `ray`).

    inputs ──> plan: parts ──> Ray Data: an actor pool ──> a file of results for each part
                                 (Worker: the `Classifier` of a run on one machine)

`plan` cuts the input into parts. `work` labels one part on a worker and sends back the content of its file.
`model_files` copies the model into a folder of each `node` that doesn't see its files. `cluster` wires them into Ray.
`run` is the machine that started the run; it alone writes output, by `part_files`. A part's file is there whole or not
at all, and a part that has its file is done: so failed parts are retried and runs resumed without repeating a row.
"""
