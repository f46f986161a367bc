"""Write what a run found as one page to look at, which needs no server and no network.

`page` fills `report.html`, a template whose style and script a reader can follow; `contents` is what it is filled with.
"""
