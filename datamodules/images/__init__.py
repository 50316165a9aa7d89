"""Images to classify: embedded digits, and folders with one folder a class."""
