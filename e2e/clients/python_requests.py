"""Python with Debian's python3-requests. It reads cases from stdin and writes a line for each, in the format of cases.mjs."""

import json
import sys
import time

import requests


def ask(case, path, body):
    headers = {"Authorization": f"Bearer {case['key']}"}
    return requests.post(case["url"] + path, headers=headers, json={"model": case["model"], **body}, stream=True, timeout=60)


def refused(response, got):
    """Return the message that a program shows if it reads the "detail" of this API's failures."""
    if response.ok:
        return False
    got.update(ok=False, type=f"HTTP {response.status_code}", status=response.status_code, says=response.json()["detail"])
    return True


def whole(path, body, text):
    def call(case, got):
        response = ask(case, path, {**body, "stream": False, "options": {"num_predict": 8, "seed": 1}})
        if not refused(response, got):
            answer = response.json()
            got.update(text=text(answer), prompt=answer["prompt_eval_count"], completion=answer["eval_count"])

    return call


def streamed(path, body, text):
    def call(case, got):
        response = ask(case, path, {**body, "options": {"num_predict": 8, "seed": 1}})
        if refused(response, got):
            return
        for line in response.iter_lines():
            part = json.loads(line)
            if "error" in part:
                got.update(ok=False, type="line", says=part["error"])
                return
            got["text"] += text(part)
            got.update(prompt=part.get("prompt_eval_count"), completion=part.get("eval_count"))

    return call


def models(case, got):
    response = requests.get(case["url"] + "/api/models", headers={"Authorization": f"Bearer {case['key']}"}, timeout=60)
    if not refused(response, got):
        got["text"] = ",".join(m["name"] for m in response.json()["models"])


CHAT = {"messages": [{"role": "user", "content": "the sea"}]}
GENERATE = {"prompt": "the sea"}
CALLS = {
    "POST /api/chat": whole("/api/chat", CHAT, lambda a: a["message"]["content"]),
    "POST /api/chat, streamed": streamed("/api/chat", CHAT, lambda a: a["message"]["content"]),
    "POST /api/generate": whole("/api/generate", GENERATE, lambda a: a["response"]),
    "POST /api/generate, streamed": streamed("/api/generate", GENERATE, lambda a: a["response"]),
    "GET /api/models": models,
}


def main():
    for case in json.load(sys.stdin):
        got = {"ok": True, "text": ""}
        start = time.monotonic()
        try:
            CALLS[case["call"]](case, got)
        except requests.RequestException as error:
            got.update(ok=False, type=type(error).__name__, says=str(error))
        got["ms"] = round((time.monotonic() - start) * 1000)
        print(json.dumps(got), flush=True)


if sys.argv[1:] == ["version"]:
    print(requests.__version__)
else:
    main()
