"""Keeping leases alive while their computes run; the lease itself lives in the store."""
