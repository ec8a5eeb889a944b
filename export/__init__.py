"""Checkpoint to bundle: the graph, its verification, and the import of checkpoints of the authors' released code."""
