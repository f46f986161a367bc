"""The embedded model `pictogram`: an open_clip `local-dir:` folder for icons, stickers and emoji, not photographs.

It was trained with `clipcls train` by the recipe in examples/pictogram; NOTICE.txt names the drawings it saw.
"""
