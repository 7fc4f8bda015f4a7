#!/bin/sh
# Before the files are unpacked: some belong to this user.
set -e
name=ollama-api-service
getent group "$name" >/dev/null || groupadd --system "$name"
getent passwd "$name" >/dev/null || useradd --system --gid "$name" --home-dir "/var/lib/$name" --no-create-home \
  --shell /usr/sbin/nologin --comment "Ollama API Service" "$name"
