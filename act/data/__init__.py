"""Text as the models see it: records, tokens, the positions that count, batches in a fixed order.

No forward pass and no statistics belong here.
"""
