"""The built-in label sets: label files, each with a line on what it is and where its names are from."""
