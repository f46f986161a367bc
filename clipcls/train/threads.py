"""Pools of threads for what is prepared ahead."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def pool_of(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """A pool that isn't waited for when it is left by an exception: a thread may hang on a source that stalls."""
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
