"""A run from corpus to profile: what decides it, its loop, checkpoints, ranks, stability and its cost.

What is done with a profile afterwards does not belong here.
"""
