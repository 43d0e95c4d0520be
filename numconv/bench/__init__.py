"""``python -m numconv bench``: numconv beside its peers on the same work, each library in a process of its own."""
