"""Tables of clicks: files, columns, split and encoded samples."""
