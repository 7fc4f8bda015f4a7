#!/usr/bin/env bash
# A tour of the service in front of a real Ollama. ONCE=1 ends after the tour; otherwise the service runs until Ctrl-C. The demo uses
# the Ollama at OLLAMA_BASE_URL (http://127.0.0.1:11434 if unset) if it answers and has a chat model; otherwise it installs and starts
# its own with the tiny test model. All data is in ./demo-data, and the demo ends every process that it has started.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' plain=$'\e[0m'; else bold='' dim='' green='' plain=''; fi
title() { printf '\n%s\n' "${bold}== $*${plain}"; }
show() { printf '%s\n' "${dim}\$ $*${plain}"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }

. scripts/setup.sh
ready demo || exit 1

mkdir -p demo-data
data=$(mktemp -d "$PWD/demo-data/run.XXXXXX")
started=()

cleanup() {
  local pid
  trap - EXIT INT TERM
  for ((i = ${#started[@]} - 1; i >= 0; i--)); do
    pid=${started[i]}
    kill -TERM "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  rm -rf "$data"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# await PID FILE PATTERN WHAT: waits until the program has printed the pattern, and prints the part in parentheses.
await() {
  local i
  for ((i = 0; i < 300; i++)); do
    sed -nE "s|.*$3.*|\1|p" "$2" | head -n 1 | grep . && return
    kill -0 "$1" 2>/dev/null || break
    sleep 0.1
  done
  printf '%s did not start. Its output:\n' "$4" >&2
  tail -n 20 "$2" >&2
  return 1
}

# field NAME: the first string of that name in the JSON on stdin.
field() { sed -nE 's|^[^"]*(.*)$|\1|; s|.*"'"$1"'" *: *"([^"]*)".*|\1|p' | head -n 1; }

# booked KEY N: prints the statistics of the key when they contain N requests. The books are written in batches, some milliseconds later.
booked() {
  local stats i
  for ((i = 0; i < 50; i++)); do
    stats=$(curl -fsS "$url/api/stats" -H "Authorization: Bearer $1")
    case $stats in *"\"total_requests\":$2,"*) break ;; esac
    sleep 0.1
  done
  printf '%s\n' "$stats"
}

# chat_model URL: prints the first installed model that can chat: no embedding model, and no cloud model.
chat_model() {
  local name about
  while read -r name; do
    case $name in '' | *cloud) continue ;; esac
    about=$(curl -fsS --max-time 10 "$1/api/show" -d "{\"model\":\"$name\"}" 2>/dev/null) || continue
    case $about in
    *'"capabilities":['*'"completion"'*) printf '%s\n' "$name"; return ;;
    *'"capabilities":['*) continue ;;
    *'"family":"bert"'* | *'"family":"nomic-bert"'*) continue ;;
    *) printf '%s\n' "$name"; return ;; # an older Ollama, which reports no capabilities
    esac
  done < <(curl -fsS --max-time 10 "$1/api/tags" | grep -oE '"name":"[^"]*"' | cut -d'"' -f4)
  return 1
}

title "Ollama"
backend=${OLLAMA_BASE_URL:-http://127.0.0.1:11434}
backend=${backend%%,*} backend=${backend%%\?*} backend=${backend%/}
model=''
if curl -fsS --max-time 3 -o /dev/null "$backend/api/version" 2>/dev/null; then
  if model=$(chat_model "$backend"); then
    echo "Using the Ollama at $backend with its model $model."
  else
    echo "The Ollama at $backend has no chat model installed; starting the demo's own Ollama."
  fi
else
  echo "No Ollama answers at $backend; starting the demo's own Ollama."
fi

if [ -z "$model" ]; then
  ollama_there || fail "Ollama could not be built"
  mkdir -p "$data/ollama"
  HOME=$data/ollama OLLAMA_MODELS=$data/ollama/models OLLAMA_HOST=127.0.0.1:0 ollama serve >"$data/ollama.log" 2>&1 &
  started+=($!)
  address=$(await $! "$data/ollama.log" 'Listening on (127\.0\.0\.1:[0-9]+)' Ollama)
  backend=http://$address
  (cd testdata && HOME=$data/ollama OLLAMA_HOST=$address ollama create tiny -f Modelfile >"$data/create.log" 2>&1) ||
    { tail -n 5 "$data/create.log" >&2; fail "the model tiny could not be created"; }
  model=tiny
  echo "Ollama runs at $backend with the model tiny: 540 KB of random weights, which answer with random words."
fi

title "Build and start"
show make build
progress "building the service" make --no-print-directory build
port=8000
if (exec 3<>/dev/tcp/127.0.0.1/8000) 2>/dev/null; then port=0; fi
# An empty environment, so that the demo shows the defaults. There is no .env in the directory where the service starts.
mkdir -p "$data/service"
program=$PWD/bin/ollama-api-service
(cd "$data/service" && exec env -i PATH="$PATH" HOME="$HOME" OLLAMA_BASE_URL="$backend" HOST=127.0.0.1 PORT=$port \
  DATA_DIR="$data/service/data" LOG_FORMAT=json "$program" serve >"$data/service.log" 2>"$data/service.err") &
started+=($!)
address=$(await $! "$data/service.log" '"msg":"listening".*"addr":"([^"]*)"' "The service")
url=http://$address
admin=$(sed -nE 's/.*(oas_[0-9A-Za-z]{10}_[0-9A-Za-z]{38}).*/\1/p' "$data/service.err" | head -n 1)
[ -n "$admin" ] || fail "the service printed no admin key"
echo "The service listens at ${bold}$url${plain}. Its first admin key was printed once: $admin"

title "Create a key"
show "curl $url/api/keys -H 'Authorization: Bearer ADMIN_KEY' -d '{\"name\":\"demo\",\"role\":\"user\",\"rate_limit\":100}'"
made=$(curl -fsS "$url/api/keys" -H "Authorization: Bearer $admin" -H 'Content-Type: application/json' \
  -d '{"name":"demo","role":"user","rate_limit":100}')
printf '%s\n' "$made"
key=$(field api_key <<<"$made")
[ -n "$key" ] || fail "no key was created"

title "A request without a key"
show "curl $url/api/models"
curl -sS -w '  -> %{http_code}\n' "$url/api/models"

title "The models"
show "curl $url/api/models -H 'Authorization: Bearer KEY'"
curl -fsS "$url/api/models" -H "Authorization: Bearer $key" | grep -oE '"name":"[^"]*"' | cut -d'"' -f4 | sed 's/^/  /'

title "A streamed chat"
question='What is a gateway good for? Two sentences.'
body="{\"model\":\"$model\",\"messages\":[{\"role\":\"user\",\"content\":\"$question\"}],\"max_tokens\":60}"
show "curl -N $url/api/chat -H 'Authorization: Bearer KEY' -d '$body'"
last=''
content='"content":"(([^"\\]|\\.)*)"'
while IFS= read -r line; do
  if [[ $line =~ $content ]]; then
    word=${BASH_REMATCH[1]}
    case $word in *\\u*) word=' ' ;; esac # do not print control characters on a terminal
    printf '%b' "$word"
  fi
  last=$line
done < <(curl -fsSN --max-time 600 "$url/api/chat" -H "Authorization: Bearer $key" -d "$body")
printf '\n'
case $last in
*'"done":true'*) printf '%s\n' "${dim}$(grep -oE '"(prompt_)?eval_count":[0-9]+' <<<"$last" | tr '\n' ' ')${plain}" ;;
*) fail "the stream did not end with its last record: $last" ;;
esac

title "The usage of the key"
show "curl $url/api/stats -H 'Authorization: Bearer KEY'"
booked "$key" 1 | sed 's/,"/,\n "/g'

title "The limit"
made=$(curl -fsS "$url/api/keys" -H "Authorization: Bearer $admin" -H 'Content-Type: application/json' \
  -d '{"name":"demo, two requests an hour","role":"user","rate_limit":2}')
small=$(field api_key <<<"$made")
for n in 1 2 3; do
  code=$(curl -sS -o "$data/answer" -D "$data/head" -w '%{http_code}' "$url/api/generate" -H "Authorization: Bearer $small" \
    -d "{\"model\":\"$model\",\"prompt\":\"Hello\",\"stream\":false,\"max_tokens\":4}")
  printf 'request %s -> %s  %s\n' "$n" "$code" "$(tr -d '\r' <"$data/head" | grep -iE '^(x-ratelimit-remaining|retry-after):' | tr '\n' ' ')"
done
cat "$data/answer"
printf '\n'
[ "$code" = 429 ] || fail "the third request should have been refused"

title "For the administrator"
booked "$small" 2 >/dev/null
show "ollama-api-service stats"
(cd "$data/service" && env -i PATH="$PATH" HOME="$HOME" LANG="${LC_ALL:-${LANG:-}}" DATA_DIR="$data/service/data" "$program" stats)

title "Addresses"
echo "  $url/           information about the service"
echo "  $url/health     the state of the service and of Ollama"
for page in docs redoc; do
  if [ "$(curl -sS -o /dev/null -w '%{http_code}' "$url/$page")" = 200 ]; then echo "  $url/$page"; fi
done
echo "  an Ollama client:   OLLAMA_HOST=$url/k/$key ollama run $model"
echo "  an OpenAI client:   base URL $url/v1, API key $key"

if [ "${ONCE:-}" = 1 ]; then
  printf '\n%s\n' "${green}The tour is over.${plain}"
  exit 0
fi
printf '\n%s\n' "The service keeps running. Ctrl-C stops it and removes the demo's data. Its log: $data/service.log"
trap 'exit 0' INT TERM # the normal end
wait "${started[-1]}" || fail "the service ended by itself: $(tail -n 3 "$data/service.err")"
