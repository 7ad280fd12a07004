"""Environments: wrappers and suites for gymnasium ids, vector environments, dreams, and the rollout loop."""
