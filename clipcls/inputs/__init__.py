"""List the pictures that a user names, one `ImageRef` each, and read their bytes."""
