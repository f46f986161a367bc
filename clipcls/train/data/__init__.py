"""What a run trains on: pictures with captions, read, ordered, put into batches, augmented."""
