"""What was measured: moments in a flat arena, profiles, their files, and how profiles merge.

Measuring itself does not belong here: a profile is plain data.
"""
