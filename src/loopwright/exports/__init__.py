"""Configurations for what runs around Loopwright, written from parsed values: HAProxy."""
