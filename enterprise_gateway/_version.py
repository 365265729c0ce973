"""The version, in one place; hatchling reads it from here."""

__version__ = "4.0.0.dev0"
