"""Training of dual encoders; `loop.train` is what the command calls.

settings                    what decides a run
rows, table, classes,       the data: rows of pictures and captions, in a table,
shards, data                in class folders, in tar shards; `data` chooses
pictures, phrasing,         a batch: decoded, in templates, augmented;
augment, feed               `feed` puts it together ahead of the model
start, spread, towers       the model that a run begins with, and which of its weights learn
loss, objective             what is minimised, and its gradients
optimizer, average          the update, and the moving average of the weights
processes, randomness       several processes under torchrun; random states
trainer, loop               steps; a whole run with its output folder
folder, checkpoint          the model's folder, and what a run goes on from
validation, history,        how good it is, and what a run tells of itself:
curves, board               metrics, their picture, TensorBoard
"""
