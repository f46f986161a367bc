"""Pictures into a folder for each label, by predictions that were written before, and back again.

`sorting` plans and carries out, `unsorting` takes back, `ledger` records both in the folder, `placing` puts one file
somewhere without overwriting another, `naming` makes names of folders and files.
"""
