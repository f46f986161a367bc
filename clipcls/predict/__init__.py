"""From features to answers: labels ranked by cosine similarity, scored, calibrated, explained."""
