"""Training of dual encoders; `loop.train` is what the command calls, and `trainer.Trainer.step` what it repeats.

settings                    what decides a run
data/                       rows of pictures and captions, put together to batches ahead of the model
start_model, towers         the model that a run begins with, which of its weights learn, how a batch goes through it
trainer, loss, optimizer    the step
processes, hooks            several processes under torchrun; what a recipe adds
loop, checkpoint, history   a whole run with its folder, what it goes on from, its metrics and their curves
model_folder, validation    the model as it is saved, and how good it is
"""
