"""The gateway as the client in the conformance suite's client scenarios.

usage: client.py WEIR URL

Starts the gateway WEIR with the suite's server at URL behind it, and a caller of 2026-07-28 in front
that does what the scenarios want of a client: list, call, answer what is asked, get, read. What the
suite's server sees is the gateway. Which headers a caller gives is not the matter here, so a call
of a tool that wants some is made by an old caller, who gives none.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

MODERN = "2026-07-28"
OLD = "2025-11-25"
CONFIG = """
[gateway]
listen = "127.0.0.1:0"
state_dir = "{dir}/state"
cache_dir = "{dir}/cache"
[admin]
listen = "127.0.0.1:0"
[upstreams.up]
url = "{url}"
prefix = ""
isolation = "consumer"
"""


def start(weir, url, dir):
    path = os.path.join(dir, "upstreams.toml")
    with open(path, "w") as config:
        config.write(CONFIG.format(dir=dir, url=url))
    process = subprocess.Popen([weir, "--log-format", "json", "--config", path], stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        said = json.loads(line)
        if said.get("message") == "serving":
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, said["url"]
    raise SystemExit("the gateway did not start")


class Caller:
    def __init__(self, url):
        self.url = url
        self.session = None

    def post(self, body, headers):
        headers = {"content-type": "application/json", "accept": "application/json, text/event-stream", **headers}
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                text, headers = answer.read().decode(), answer.headers
        except urllib.error.HTTPError as error:
            text, headers = error.read().decode(), error.headers
        if "event-stream" in (headers.get("content-type") or ""):
            datas = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
            text = datas[-1] if datas else ""
        return (json.loads(text) if text else {}), headers

    def ask(self, method, params, name=None):
        capabilities = {"elicitation": {"form": {}}, "sampling": {}, "roots": {}}
        meta = {"protocolVersion": MODERN, "clientInfo": {"name": "c", "version": "1"}, "clientCapabilities": capabilities}
        meta = {f"io.modelcontextprotocol/{key}": value for key, value in meta.items()}
        headers = {"mcp-protocol-version": MODERN, "mcp-method": method}
        if name is not None:
            headers["mcp-name"] = name
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
        return self.post(body, headers)[0].get("result", {})

    def ask_old(self, method, params):
        if self.session is None:
            hello = {"protocolVersion": OLD, "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
            _, headers = self.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello}, {})
            self.session = headers["mcp-session-id"]
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return self.post(body, {"mcp-session-id": self.session})[0].get("result", {})

    def call(self, name, arguments):
        params = {"name": name, "arguments": arguments}
        for _ in range(5):
            result = self.ask("tools/call", params, name)
            if result.get("resultType") != "input_required":
                return
            answers = {key: answer(question) for key, question in result.get("inputRequests", {}).items()}
            params = {"name": name, "arguments": arguments, "inputResponses": answers}
            if "requestState" in result:
                params["requestState"] = result["requestState"]


def sample(schema):
    if "default" in schema:
        return schema["default"]
    if "enum" in schema:
        return schema["enum"][0]
    return {"integer": 3, "number": 5, "boolean": True, "array": [], "object": {}}.get(schema.get("type"), "x")


def filled(schema):
    return {key: sample(of) for key, of in schema.get("properties", {}).items()}


def answer(question):
    if question["method"] == "elicitation/create":
        return {"action": "accept", "content": filled(question["params"].get("requestedSchema", {}))}
    if question["method"] == "roots/list":
        return {"roots": []}
    return {"role": "assistant", "content": {"type": "text", "text": "x"}, "model": "m"}


def run(url):
    caller = Caller(url)
    end = time.monotonic() + 20
    tools = []
    while not tools and time.monotonic() < end:
        time.sleep(0.2)
        tools = [t for t in caller.ask("tools/list", {}).get("tools", []) if not t["name"].startswith("weir__")]
    context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}")
    for chosen in context.get("toolCalls", []):
        caller.ask_old("tools/call", {"name": chosen["name"], "arguments": chosen["arguments"]})
    if not context.get("toolCalls"):
        schemas = {tool["name"]: tool["inputSchema"] for tool in tools}
        for name, schema in schemas.items():
            arguments = filled(schema)
            if name == "json_schema_echo":
                # It wants to see a schema as this client got it.
                arguments = {"schema": next(s for n, s in schemas.items() if n != name)}
            if "x-mcp-header" in json.dumps(schema):
                caller.ask_old("tools/call", {"name": name, "arguments": arguments})
            else:
                caller.call(name, arguments)
    for prompt in caller.ask("prompts/list", {}).get("prompts", []):
        caller.ask("prompts/get", {"name": prompt["name"], "arguments": {}}, prompt["name"])
    for resource in caller.ask("resources/list", {}).get("resources", []):
        caller.ask("resources/read", {"uri": resource["uri"]}, resource["uri"])


def main():
    weir, url = sys.argv[1], sys.argv[2]
    with tempfile.TemporaryDirectory() as dir:
        process, at = start(weir, url, dir)
        try:
            run(at)
        finally:
            process.terminate()
            process.wait(20)


main()
