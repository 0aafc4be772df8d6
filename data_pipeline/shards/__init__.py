"""WebDataset tars of token blocks: written, read at random, checked and put together."""
