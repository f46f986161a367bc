"""Turn features into answers: rank labels by cosine similarity, score, calibrate and explain them."""
