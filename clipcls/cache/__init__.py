"""The cache: features of texts and images, facts of models and fingerprints of files, in one SQLite file."""

from clipcls.cache.database import SCHEMA_VERSION, default_folder
from clipcls.cache.entries import CachedImage, CachedText, file_status, text_key
from clipcls.cache.store import DEFAULT_LIMIT, MEGABYTE, Cache
from clipcls.cache.upkeep import CacheInfo, Pruned, clear, info, prune

__all__ = [
    "DEFAULT_LIMIT",
    "MEGABYTE",
    "SCHEMA_VERSION",
    "Cache",
    "CacheInfo",
    "CachedImage",
    "CachedText",
    "Pruned",
    "clear",
    "default_folder",
    "file_status",
    "info",
    "prune",
    "text_key",
]
