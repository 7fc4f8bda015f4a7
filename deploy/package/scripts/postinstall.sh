#!/bin/sh
# dpkg passes "configure" and the previous version; rpm passes the number of installed versions.
set -e
upgrade=
case "$1" in
configure) upgrade=$2 ;;
2) upgrade=yes ;;
esac
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  # No restart at a first installation: the operator has not checked the settings yet.
  if [ -n "$upgrade" ] && ! systemctl try-restart ollama-api-service.service; then
    echo "ollama-api-service was upgraded but did not start: see journalctl --unit=ollama-api-service" >&2
  fi
fi
if [ -z "$upgrade" ]; then
  cat <<'TEXT'
ollama-api-service is installed and does not run yet.
  1. Check its settings:    /etc/ollama-api-service/ollama-api-service.env
  2. Start it:              systemctl enable --now ollama-api-service
  3. Read the first admin key, then delete the file that holds it:
                            /var/lib/ollama-api-service/first-admin.key
More: man ollama-api-service, /usr/share/doc/ollama-api-service/deployment.md
TEXT
fi
