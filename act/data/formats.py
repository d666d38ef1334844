"""The kinds of files that records are read from, by their endings."""

from __future__ import annotations

LINES = (".jsonl", ".ndjson", ".txt")
ARRAYS = (".json",)
DELIMITED = (".csv", ".tsv")
TABLES = {".parquet": "parquet", ".arrow": "arrow"}
COMPRESSED = (".gz", ".zst")
"""Endings that may follow those of all but tables."""

EVERY_FORMAT = "JSONL, JSON, CSV, TSV or text (also .gz, .zst), Parquet or Arrow file"
