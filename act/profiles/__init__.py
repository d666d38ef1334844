"""What was measured: moments in a flat arena, profiles and their files, profiles merged.

How it is measured does not belong here: a profile is plain data.
"""
