"""What an operator should know of an app's cache: what was found, how bad it is, and what to do about it.

`subject` gathers what the app says, `asking`, `rights` and `workers` what servers answer; all else is pure.
"""
