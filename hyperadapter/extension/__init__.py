"""Languages that a trained model does not know: relatives, mixtures, fits to a few pairs."""
