#!/bin/sh
# This runs before the files are unpacked, because some belong to this user.
set -e
name=ollama-api-service
getent group "$name" >/dev/null || groupadd --system "$name"
getent passwd "$name" >/dev/null || useradd --system --gid "$name" --home-dir "/var/lib/$name" --no-create-home \
  --shell /usr/sbin/nologin --comment "Ollama API Service" "$name"
