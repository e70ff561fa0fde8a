"""From a source to a pinned, checked table: source → bronze → check → silver | quarantine → snapshot."""
