"""What the right answers are: read from class folders, tables or shards."""
