"""The project's tests; CONTRIBUTING.md says how they are organised."""
