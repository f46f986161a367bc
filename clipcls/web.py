"""Pictures fetched from the web."""


class Web:
    """Fetches addresses."""

    def fetch(self, url: str, max_bytes: int) -> bytes:
        """The content of an address."""
        raise NotImplementedError
