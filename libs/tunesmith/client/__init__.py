# Generated from tunesmith/aio/__init__.py by `make client`; do not edit.
"""The client of a platform: `tunesmith/aio` is its source, `make client` writes `tunesmith/client`.

Arguments take short names: `habit` means `projects/{project}/datasets/habit`, `habit@2` for
its version 2.
"""

from tunesmith.client.client import Client

__all__ = ["Client"]
