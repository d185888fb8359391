"""Integrations: one file each, which imports its framework. The core imports none of them."""
