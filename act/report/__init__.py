"""What profiles and channel sets say, as plain data, tables and pictures."""
