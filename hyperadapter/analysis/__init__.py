"""What a trained run has learnt about its languages: relatedness, and what swapping them costs."""
