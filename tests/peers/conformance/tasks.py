"""An MCP server with what the official conformance suite asks for of the extension
io.modelcontextprotocol/tasks.

Listens on a free port of 127.0.0.1 and prints its URL as the first line. Knows 2026-07-28 only.
Made with the Python SDK 2.x; what the SDK does not know of the extension (the methods, their
routing header, the capability they need) is here.
"""

import asyncio
import json
import secrets
import socket
import sys
from datetime import UTC, datetime

import uvicorn
from fixture import as_json, cached, checked, form, needs, only, said, schema, text
from mcp.server.lowlevel.server import Server
from mcp.shared.exceptions import MCPError
from mcp_types import RequestParams
from pydantic import ConfigDict

EXTENSION = "io.modelcontextprotocol/tasks"
HEADER_MISMATCH, CAPABILITY_MISSING, INVALID_PARAMS = -32020, -32021, -32602
TTL = 600_000
TASKS = {}


class Params(RequestParams):
    """Params of whatever is asked about a task."""

    model_config = ConfigDict(extra="allow")


class Task:
    """One run of a tool. What it wants to know waits in `open`, by key."""

    def __init__(self, tool, args):
        self.id = secrets.token_hex(12)
        self.status, self.outcome = "working", {}
        self.created = self.updated = now()
        self.open, self.more = {}, asyncio.Event()
        self.run = asyncio.create_task(self.live(tool, args))
        TASKS[self.id] = self

    async def live(self, tool, args):
        try:
            self.settle("completed", result=await tool(self, **args))
        except MCPError as e:
            self.settle("failed", error={"code": e.error.code, "message": e.error.message})
        except asyncio.CancelledError:
            self.settle("cancelled")

    def settle(self, status, **outcome):
        self.status, self.outcome, self.updated = status, outcome, now()

    async def ask(self, requests):
        """All answers, by the keys of the requests."""
        self.open, answers = dict(requests), {}
        self.answers = answers
        self.settle("input_required")
        while self.open:
            self.more.clear()
            await self.more.wait()
        self.settle("working")
        return answers

    def answer(self, responses):
        for key, response in responses.items():
            # An answer to what is not asked is nobody's business.
            if self.open.pop(key, None):
                self.answers[key] = response
        if not self.open and self.status == "input_required":
            self.status = "working"
        self.more.set()

    def words(self):
        out = {"taskId": self.id, "status": self.status, "createdAt": self.created, "lastUpdatedAt": self.updated}
        return {**out, "ttlMs": TTL, "pollIntervalMs": 100}

    def detailed(self):
        asked = {"inputRequests": self.open} if self.status == "input_required" else {}
        return {"resultType": "complete", **self.words(), **self.outcome, **asked}


def now():
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


# --- tools ----------------------------------------------------------------------------------------


async def slow_compute(task, seconds=1, label=""):
    await asyncio.sleep(seconds)
    return said(text(f"computed {label} for {seconds} s"))


async def failing_job(task):
    await asyncio.sleep(0.3)
    return {**said(text("the job failed")), "isError": True}


async def protocol_error_job(task):
    await asyncio.sleep(0.3)
    raise MCPError(-32603, "the job broke")


CONFIRM = form("Delete it?", ("confirm",), confirm={"type": "boolean"})
NAME = form("What is your name?", ("name",), name={"type": "string"})


async def confirm_delete(task, filename=""):
    answers = await task.ask({secrets.token_hex(4): CONFIRM})
    return said(text(f"{filename}: {json.dumps(list(answers.values()))}"))


async def multi_input(task):
    answers = await task.ask({"first": NAME, "second": CONFIRM})
    return said(text(json.dumps(answers)))


async def greet_by_name(task, name=""):
    return said(text(f"Hello, {name}!"))


NUMBER, STRING = {"type": "number"}, {"type": "string"}
# What runs as a task if the client knows tasks; those in MUST run in no other way.
RUNS = {
    "slow_compute": (slow_compute, schema(seconds=NUMBER, label=STRING)),
    "failing_job": (failing_job, schema()),
    "protocol_error_job": (protocol_error_job, schema()),
    "confirm_delete": (confirm_delete, schema(filename=STRING)),
    "multi_input": (multi_input, schema()),
}
MUST = {"failing_job", "protocol_error_job", "confirm_delete", "multi_input", "test_tool_with_task"}
OTHER = {"greet": schema(("name",), name=STRING), "test_tool_with_task": schema()}


async def list_tools(ctx, params):
    schemas = {**OTHER, **{name: schema for name, (_, schema) in RUNS.items()}}
    tools = [{"name": n, "description": f"The tool {n}.", "inputSchema": s} for n, s in schemas.items()]
    return cached(ctx, {"resultType": "complete", "tools": tools})


def declared(ctx):
    capabilities = as_json(ctx.session.client_capabilities) or {}
    return EXTENSION in (capabilities.get("extensions") or {})


def need_extension():
    needed = {"extensions": {EXTENSION: {}}}
    raise MCPError(CAPABILITY_MISSING, f"{EXTENSION} was not declared", {"requiredCapabilities": needed})


async def call_tool(ctx, params):
    name, args = params.name, params.arguments or {}
    if name == "greet":
        return {"resultType": "complete", **said(text(f"Hello, {args.get('name')}!"))}
    if name in MUST and not declared(ctx):
        need_extension()
    if name == "test_tool_with_task":
        answers = as_json(params.input_responses) or {}
        if "user_name" not in answers:
            return needs({"user_name": NAME}, "asked")
        checked(params.request_state)
        return created(greet_by_name, {"name": answers["user_name"]["content"]["name"]})
    if name not in RUNS:
        raise MCPError(INVALID_PARAMS, f"Unknown tool: {name}")
    tool = RUNS[name][0]
    if not declared(ctx):
        return {"resultType": "complete", **await tool(None, **args)}
    return created(tool, args)


def created(tool, args):
    return {**Task(tool, args).words(), "resultType": "task"}


# --- tasks ----------------------------------------------------------------------------------------


def about_task(handler):
    """A method that names a task."""

    async def handle(ctx, params):
        id = (params.model_extra or {}).get("taskId")
        if not isinstance(id, str):
            raise MCPError(INVALID_PARAMS, "taskId must be a string")
        if ctx.request.headers.get("mcp-name") != id:
            raise MCPError(HEADER_MISMATCH, "Mcp-Name does not name the task")
        if not declared(ctx):
            need_extension()
        if id not in TASKS:
            raise MCPError(INVALID_PARAMS, f"Unknown task: {id}")
        return handler(TASKS[id], params.model_extra)

    return handle


def get(task, params):
    return task.detailed()


def update(task, params):
    task.answer(params.get("inputResponses") or {})
    return {"resultType": "complete"}


def cancel(task, params):
    task.run.cancel()
    return {"resultType": "complete"}


def main():
    server = Server("tasks-fixture", version="1.0.0", on_list_tools=list_tools, on_call_tool=call_tool)
    server.extensions[EXTENSION] = {}
    for handler in (get, update, cancel):
        server.add_request_handler(f"tasks/{handler.__name__}", Params, about_task(handler))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
    config = uvicorn.Config(only("modern", server.streamable_http_app()), log_level="warning", lifespan="on")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    sys.exit(main())
