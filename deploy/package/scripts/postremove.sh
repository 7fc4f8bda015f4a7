#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
fi
case "$1" in
purge | 0)
  # The package manager must not delete keys and books.
  if [ -e /var/lib/ollama-api-service/ollama-api-service.db ]; then
    echo "Kept: /var/lib/ollama-api-service with the keys and the books. Remove it yourself if you no longer need them."
  fi
  ;;
esac
