"""Sorts pictures into a folder for each label by earlier predictions, and undoes it.

`plan` finds a place for each picture, `sort` carries that out and undoes it, `log` records it in the folder, `place`
puts one file in place without overwriting another, `names` makes names of folders and files.
"""
