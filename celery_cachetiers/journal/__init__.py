"""Where write-behind writes wait for their sink."""
