"""The paper's experiments as data: what each trains, at which scale, and which sentence of the paper it tests."""
