"""Pickles and files of torch.save, read by rules of our own: no code in them runs."""
