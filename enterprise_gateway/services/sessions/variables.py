"""The environment variables that configure the kernel session store."""

from __future__ import annotations

from enterprise_gateway.core.envvars import boolean, declare

PERSISTENCE = declare(
    "EG_KERNEL_SESSION_PERSISTENCE", boolean, False, "Keep records of running kernels so that they outlive the gateway."
)
PERSISTENCE_ROOT = declare(
    "EG_PERSISTENCE_ROOT",
    str,
    "",
    "Directory that holds the records of running kernels; by default the Jupyter data directory.",
    "EG_KERNEL_SESSION_LOCATION",
)
SEALING_KEY_FILE = declare(
    "EG_SESSION_SEALING_KEY_FILE", str, "", "File of base64 keys that seal the secrets in the records of kernels."
)
STORE_TIMEOUT = declare(
    "EG_SESSION_STORE_TIMEOUT", float, 10.0, "Seconds that the store may take for an answer before a request gets 503."
)
WEBHOOK_URL = declare("EG_WEBHOOK_URL", str, None, "Address of the web service that keeps the records of kernels.")
WEBHOOK_USERNAME = declare("EG_WEBHOOK_USERNAME", str, None, "User name for the web service.")
WEBHOOK_PASSWORD = declare("EG_WEBHOOK_PASSWORD", str, None, "Password for the web service.")
WEBHOOK_AUTH_TYPE = declare("EG_AUTH_TYPE", str, None, "How to log in to the web service: basic or digest.")
DATABASE_URL = declare(
    "EG_SESSION_DATABASE_URL", str, "", "SQLAlchemy URL of the database that keeps the records of kernels."
)
DATABASE_URL_FILE = declare(
    "EG_SESSION_DATABASE_URL_FILE", str, "", "File that holds the database's URL, for URLs with a password."
)
