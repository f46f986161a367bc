"""Read pictures with their labels or captions from class folders, tables or shards."""
