"""The environment variables that configure the kernel session store, by their short names."""

from __future__ import annotations

from enterprise_gateway.core import envvars

PERSISTENCE = envvars.EG_KERNEL_SESSION_PERSISTENCE
PERSISTENCE_ROOT = envvars.EG_PERSISTENCE_ROOT
SEALING_KEY_FILE = envvars.EG_SESSION_SEALING_KEY_FILE
STORE_TIMEOUT = envvars.EG_SESSION_STORE_TIMEOUT
WEBHOOK_URL = envvars.EG_WEBHOOK_URL
WEBHOOK_USERNAME = envvars.EG_WEBHOOK_USERNAME
WEBHOOK_PASSWORD = envvars.EG_WEBHOOK_PASSWORD
WEBHOOK_AUTH_TYPE = envvars.EG_AUTH_TYPE
DATABASE_URL = envvars.EG_SESSION_DATABASE_URL
DATABASE_URL_FILE = envvars.EG_SESSION_DATABASE_URL_FILE
