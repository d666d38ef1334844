"""How well a model does: answers and likelihoods, paired tests, benchmark tasks, sweeps of settings.

Nothing here decides which channels move.
"""
