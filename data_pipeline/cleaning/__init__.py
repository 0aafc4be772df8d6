"""Raw sentence pairs to a clean corpus: rules, deduplication, splits, near-duplicates."""
