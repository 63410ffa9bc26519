"""What the cache did, counted by subscribers of its events."""
