"""Commands that run the points of a study."""
