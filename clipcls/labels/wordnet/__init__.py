"""The words of `clipcls.labels.other_words`, from WordNet 3.1; LICENSE.txt holds its licence."""
