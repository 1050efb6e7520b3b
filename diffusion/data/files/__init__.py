"""Images as they lie on disk: folders, arrays, shards and the set's own files, decoded and remembered."""
