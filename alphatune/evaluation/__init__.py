"""One pass of a model over batches: what it gives, in which precision, and how each example scores."""
