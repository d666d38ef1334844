"""Damaged and hostile files, nine kinds of them, as every reader may meet them."""
