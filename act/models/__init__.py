"""Hugging Face models as the method sees them: loading, devices, weights, the channel space, heads and neurons.

No text, no statistics and no hooks belong here.
"""
