"""Writes labels as keywords beside pictures or into them, and undoes it.

`keywords` takes them from rows, `sidecar` edits XMP beside a picture, `in_file` the metadata in it (with the extra
`tag`), `log` records how to restore every byte, `tag` carries it out and undoes it.
"""
