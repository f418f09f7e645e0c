"""Tuned models in other formats, checked against PyTorch, and what α costs there."""
