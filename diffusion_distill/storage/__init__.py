"""Files here and in buckets, written whole or not at all, with checksums."""
