"""Raw bitext to batches: read, clean, split, tokenise, shard, mix, stream. No torch."""
