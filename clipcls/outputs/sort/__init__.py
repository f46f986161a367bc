"""Put pictures into a folder for each label, by predictions that were written before, and take them back.

`plan` says what goes where, `sort` does it and undoes it, `log` keeps what was done in the folder, `place` puts one
file somewhere without overwriting another, `names` makes names.
"""
