"""Programs for those who work on Pointsman; no part of what is installed."""
