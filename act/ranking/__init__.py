"""From profiles to a channel set: scores, normalisation, units, selection, analysis.

Nothing here changes a model.
"""
