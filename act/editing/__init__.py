"""What changes weights: transfer, patches, model folders on disk, merges and the light fine-tune.

How well the result does is measured in act.evaluation.
"""
