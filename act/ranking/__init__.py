"""From profiles to a channel set: scores, their scale, what is ranked as one, how much is taken, analysis.

Nothing here changes a model.
"""
