"""``python -m enterprise_gateway``."""

from __future__ import annotations

from .enterprisegatewayapp import launch_instance

if __name__ == "__main__":
    launch_instance()
