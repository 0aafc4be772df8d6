"""Steps to batches: mixture, plan, padding, reading ahead."""
