"""Executors for altcore: each module says where the workers of a sweep run."""
