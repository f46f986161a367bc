"""What the right answers are: read from class folders, tables or shards, and matched with the labels of a run."""

from clipcls.truth.examples import Example, Truth
from clipcls.truth.matching import label_indices, repeated_paths
from clipcls.truth.reading import read_truth

__all__ = ["Example", "Truth", "label_indices", "read_truth", "repeated_paths"]
