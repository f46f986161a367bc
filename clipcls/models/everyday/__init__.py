"""The embedded model `everyday`: an open_clip `local-dir:` folder for photographs of everyday things.

It was made by the recipe in examples/everyday; NOTICE.txt names what from.
"""
