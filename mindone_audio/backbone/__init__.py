"""The bodies that all families share."""
