"""Hugging Face models as this package sees them: loading, devices, weights, the channel space, heads and neurons.

No text, no statistics and no hooks belong here.
"""
