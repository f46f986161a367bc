"""From what a user names to one `ImageRef` a picture, and from that to its bytes."""
