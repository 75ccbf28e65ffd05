"""Tests of the host's TCP, part by part."""
