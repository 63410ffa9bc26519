"""The places where entries live: this process' memory (L1) and Redis (L2)."""
