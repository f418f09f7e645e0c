"""Results as types: what result.json, the commands' JSON output and every report hold.

One definition gives the object, its JSON, its JSON Schema (schemas.py), the
validation when it is read again (stored.py), and what templates see. The order
of the fields is the order of the keys. Nothing here waits for torch.
"""
