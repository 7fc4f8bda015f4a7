#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
fi
case "$1" in
purge | 0)
  # Keys and books are not the package manager's to throw away.
  if [ -e /var/lib/ollama-api-service/ollama-api-service.db ]; then
    echo "Kept: /var/lib/ollama-api-service with the keys and the books. Remove it yourself if nobody needs them."
  fi
  ;;
esac
