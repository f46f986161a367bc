"""Answer over HTTP, in the dialects that clients already speak.

`service` answers with one model and knows nothing of HTTP; its pictures share batches (`batcher`), its label sets are
kept (`classifiers`). `requests` reads what clients send, `endpoints` and `dialects` answer it, `app` puts them behind
keys, limits, logs and figures, and `server` runs it all until a signal comes.
"""
