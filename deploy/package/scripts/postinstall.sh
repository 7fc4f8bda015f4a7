#!/bin/sh
# dpkg says "configure" and the version before; rpm says how many versions are installed now.
set -e
upgrade=
case "$1" in
configure) upgrade=$2 ;;
2) upgrade=yes ;;
esac
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  # Not try-restart at a first installation: the settings have not been seen by anybody yet.
  if [ -n "$upgrade" ] && ! systemctl try-restart ollama-api-service.service; then
    echo "ollama-api-service is upgraded and did not start: see journalctl --unit=ollama-api-service" >&2
  fi
fi
if [ -z "$upgrade" ]; then
  cat <<'TEXT'
ollama-api-service is installed and does not run yet.
  1. Look at its settings:  /etc/ollama-api-service/ollama-api-service.env
  2. Start it:              systemctl enable --now ollama-api-service
  3. Read the first admin key, then delete the file that holds it:
                            /var/lib/ollama-api-service/first-admin.key
More: man ollama-api-service, /usr/share/doc/ollama-api-service/deployment.md
TEXT
fi
