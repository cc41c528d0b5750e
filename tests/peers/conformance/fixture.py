"""An MCP server with everything that the official conformance suite's server scenarios ask for.

usage: fixture.py [--era both|legacy|modern]

Listens on a free port of 127.0.0.1 and prints its URL as the first line. `legacy` knows no
revision after 2025-11-25, `modern` none before 2026-07-28. Made with the Python SDK 2.x, whose
server speaks both.
"""

import argparse
import asyncio
import hashlib
import hmac
import json
import secrets
import socket
import sys

import uvicorn
from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http import EventMessage, EventStore
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.exceptions import MCPError

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WAV = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA="
KEY = secrets.token_bytes(16)
MODERN = "2026-07-28"


def text(value):
    return {"type": "text", "text": value}


def said(*content):
    return {"content": list(content)}


def embedded(uri, mime, body):
    return {"type": "resource", "resource": {"uri": uri, "mimeType": mime, "text": body}}


def image():
    return {"type": "image", "data": PNG, "mimeType": "image/png"}


def schema(required=(), **properties):
    out = {"type": "object", "properties": properties}
    if required:
        out["required"] = list(required)
    return out


STRING = {"type": "string"}


def form(message, required=(), **properties):
    return {
        "method": "elicitation/create",
        "params": {"mode": "form", "message": message, "requestedSchema": schema(required, **properties)},
    }


def sampling(prompt, limit):
    message = {"role": "user", "content": text(prompt)}
    return {"method": "sampling/createMessage", "params": {"messages": [message], "maxTokens": limit}}


ROOTS = {"method": "roots/list", "params": {}}


def signed(value):
    mac = hmac.new(KEY, value.encode(), hashlib.sha256).hexdigest()[:32]
    return f"{value}.{mac}"


def checked(state):
    value, _, _ = (state or "").rpartition(".")
    if not value or not hmac.compare_digest(signed(value), state):
        raise MCPError(-32602, "requestState was changed")
    return value


def needs(requests, state=None):
    out = {"resultType": "input_required"}
    if requests:
        out["inputRequests"] = requests
    if state:
        out["requestState"] = signed(state)
    return out


def as_json(value):
    if isinstance(value, dict):
        return {k: as_json(v) for k, v in value.items()}
    return value.model_dump(by_alias=True, mode="json", exclude_none=True) if hasattr(value, "model_dump") else value


def capable(ctx, name):
    """What the client declared, in this request or in its handshake."""
    declared = as_json(ctx.session.client_capabilities) or {}
    return declared.get(name) is not None


# --- tools that only say something --------------------------------------------------------------


async def simple_text(ctx, args, params):
    return said(text("This is a simple text response for testing."))


async def image_content(ctx, args, params):
    return said(image())


async def audio_content(ctx, args, params):
    return said({"type": "audio", "data": WAV, "mimeType": "audio/wav"})


async def embedded_resource(ctx, args, params):
    return said(embedded("test://embedded-resource", "text/plain", "This is an embedded resource content."))


async def multiple_content_types(ctx, args, params):
    body = json.dumps({"test": "data", "value": 123})
    return said(
        text("Multiple content types test:"),
        image(),
        embedded("test://mixed-content-resource", "application/json", body),
    )


async def error_handling(ctx, args, params):
    return {**said(text("This tool intentionally returns an error for testing")), "isError": True}


async def with_logging(ctx, args, params):
    for line in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.session.send_log_message("info", line, related_request_id=ctx.request_id)
        await asyncio.sleep(0.05)
    return said(text("three messages were logged"))


async def with_progress(ctx, args, params):
    for done in (0, 50, 100):
        await ctx.session.report_progress(done, 100)
        await asyncio.sleep(0.05)
    return said(text("done"))


async def echo_schema(ctx, args, params):
    return said(text(json.dumps(args)))


async def reconnection(ctx, args, params):
    if ctx.close_sse_stream is not None:
        await ctx.close_sse_stream()
    await asyncio.sleep(0.1)
    return said(text("Reconnection test completed successfully"))


# --- tools that ask, in the words of the caller's era ------------------------------------------


async def ask_live(ctx, request):
    session, params = ctx.session, request["params"]
    if request["method"] == "elicitation/create":
        answer = await session.elicit_form(params["message"], params["requestedSchema"], ctx.request_id)
        return as_json(answer)
    if request["method"] == "sampling/createMessage":
        from mcp_types import SamplingMessage, TextContent

        prompt = params["messages"][0]["content"]["text"]
        message = SamplingMessage(role="user", content=TextContent(type="text", text=prompt))
        answer = await session.create_message(
            [message], max_tokens=params["maxTokens"], related_request_id=ctx.request_id
        )
        return as_json(answer)
    return as_json(await session.list_roots())


class NotYet(Exception):
    """The answer comes with the caller's next request."""

    def __init__(self, result):
        self.result = result


async def ask(ctx, params, key, request, state=None):
    """What the caller says to one question, asked as its era does."""
    if ctx.protocol_version != MODERN:
        return await ask_live(ctx, request)
    if state is not None and params.request_state is not None:
        checked(params.request_state)
    answer = (as_json(params.input_responses) or {}).get(key)
    if not isinstance(answer, dict) or not usable(request["method"], answer):
        raise NotYet(needs({key: request}, state))
    return answer


def usable(method, answer):
    return {
        "elicitation/create": "action" in answer,
        "sampling/createMessage": "content" in answer,
        "roots/list": "roots" in answer,
    }[method]


async def live_sampling(ctx, args, params):
    answer = await ask(ctx, params, "sample", sampling(args.get("prompt", ""), 100))
    content = answer["content"]
    content = content[0] if isinstance(content, list) else content
    return said(text(f"LLM response: {content.get('text', '')}"))


async def fill(ctx, params, words, request):
    answer = await ask(ctx, params, "form", request)
    content = json.dumps(answer.get("content", {}))
    return said(text(f"{words}: action={answer['action']}, content={content}"))


async def live_elicitation(ctx, args, params):
    described = lambda what: {"type": "string", "description": what}  # noqa: E731
    request = form(
        args.get("message", ""),
        ("username", "email"),
        username=described("User's response"),
        email=described("User's email address"),
    )
    return await fill(ctx, params, "User response", request)


async def elicitation_defaults(ctx, args, params):
    request = form(
        "Please check these values",
        name={"type": "string", "default": "John Doe"},
        age={"type": "integer", "default": 30},
        score={"type": "number", "default": 95.5},
        status={"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        verified={"type": "boolean", "default": True},
    )
    return await fill(ctx, params, "Elicitation completed", request)


async def elicitation_enums(ctx, args, params):
    plain = ["option1", "option2", "option3"]
    words = ((1, "First"), (2, "Second"), (3, "Third"))
    titled = [{"const": f"value{n}", "title": f"{word} Option"} for n, word in words]
    old = {"enum": ["opt1", "opt2", "opt3"], "enumNames": ["Option One", "Option Two", "Option Three"]}
    request = form(
        "Please choose",
        untitledSingle={"type": "string", "enum": plain},
        titledSingle={"type": "string", "oneOf": titled},
        legacyEnum={"type": "string", **old},
        untitledMulti={"type": "array", "items": {"type": "string", "enum": plain}},
        titledMulti={"type": "array", "items": {"anyOf": titled}},
    )
    return await fill(ctx, params, "Elicitation completed", request)


def once(key, request, state=None):
    """Asks one thing, then says what it was told."""

    async def tool(ctx, args, params):
        answer = await ask(ctx, params, key, request, state)
        return said(text(f"state-ok {json.dumps(answer)}"))

    return tool


async def several(ctx, args, params):
    requests = {
        "user_name": form("What is your name?", ("name",), name=STRING),
        "greeting": sampling("Generate a greeting", 50),
        "client_roots": ROOTS,
    }
    if ctx.protocol_version != MODERN:
        answers = {k: await ask_live(ctx, r) for k, r in requests.items()}
        return said(text(json.dumps(answers)))
    responses = as_json(params.input_responses) or {}
    if params.request_state is not None:
        checked(params.request_state)
    missing = {k: r for k, r in requests.items() if k not in responses}
    if missing:
        return needs(missing, "several")
    return said(text(json.dumps(responses)))


async def rounds(ctx, args, params):
    if ctx.protocol_version != MODERN:
        await ask_live(ctx, STEP_1)
        await ask_live(ctx, STEP_2)
        return said(text("both steps are done"))
    responses = as_json(params.input_responses) or {}
    state = checked(params.request_state) if params.request_state is not None else None
    if state == "two" and "step2" in responses:
        return said(text("both steps are done"))
    if state == "one" and "step1" in responses:
        return needs({"step2": STEP_2}, "two")
    return needs({"step1": STEP_1}, "one")


STEP_1 = form("Step 1: What is your name?", ("name",), name=STRING)
STEP_2 = form("Step 2: What is your favorite color?", ("color",), color=STRING)


async def by_capability(ctx, args, params):
    """Asks only what the client can be asked."""
    requests = {}
    if capable(ctx, "elicitation"):
        requests["ask"] = form("What is your name?", ("name",), name=STRING)
    if capable(ctx, "sampling"):
        requests["sample"] = sampling("Say something", 20)
    if capable(ctx, "roots"):
        requests["roots"] = ROOTS
    if ctx.protocol_version != MODERN:
        answers = {k: await ask_live(ctx, r) for k, r in requests.items()}
        return said(text(json.dumps(answers)))
    responses = as_json(params.input_responses) or {}
    if not requests or any(k in responses for k in requests):
        return said(text("nothing is left to ask"))
    return needs(requests)


async def missing_capability(ctx, args, params):
    if not capable(ctx, "sampling"):
        raise MCPError(-32021, "This tool needs sampling", {"requiredCapabilities": {"sampling": {}}})
    return said(text("sampling is there"))


async def streaming_elicitation(ctx, args, params):
    await ctx.session.report_progress(1, 2)
    return await once("user_name", NAME)(ctx, args, params)


async def logging_tool(ctx, args, params):
    await ctx.session.send_log_message("info", "working", related_request_id=ctx.request_id)
    return said(text("logged, if that was wanted"))


NAME = form("What is your name?", ("name",), name=STRING)
CONFIRM = form("Please confirm", ("ok",), ok={"type": "boolean"})
DIALECT = "https://json-schema.org/draft/2020-12/schema"
ADDRESS = {"$anchor": "address", "type": "object", "properties": {"street": STRING, "city": STRING}}
EVERY_KEYWORD = {
    "$schema": DIALECT,
    "type": "object",
    "$defs": {"address": ADDRESS},
    "properties": {
        "name": STRING,
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": STRING,
        "email": STRING,
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}

TOOLS = {
    "test_simple_text": (simple_text, schema()),
    "test_image_content": (image_content, schema()),
    "test_audio_content": (audio_content, schema()),
    "test_embedded_resource": (embedded_resource, schema()),
    "test_multiple_content_types": (multiple_content_types, schema()),
    "test_error_handling": (error_handling, schema()),
    "test_tool_with_logging": (with_logging, schema()),
    "test_tool_with_progress": (with_progress, schema()),
    "test_sampling": (live_sampling, schema(("prompt",), prompt=STRING)),
    "test_elicitation": (live_elicitation, schema(("message",), message=STRING)),
    "test_elicitation_sep1034_defaults": (elicitation_defaults, schema()),
    "test_elicitation_sep1330_enums": (elicitation_enums, schema()),
    "test_missing_capability": (missing_capability, schema()),
    "test_streaming_elicitation": (streaming_elicitation, schema()),
    "test_logging_tool": (logging_tool, schema()),
    "test_reconnection": (reconnection, schema()),
    "json_schema_2020_12_tool": (echo_schema, EVERY_KEYWORD),
    "test_input_required_result_elicitation": (once("user_name", NAME), schema()),
    "test_input_required_result_sampling": (once("capital_question", sampling("What is the capital of France?", 100)), schema()),
    "test_input_required_result_list_roots": (once("client_roots", ROOTS), schema()),
    "test_input_required_result_request_state": (once("confirm", CONFIRM, "confirm"), schema()),
    "test_input_required_result_multiple_inputs": (several, schema()),
    "test_input_required_result_multi_round": (rounds, schema()),
    "test_input_required_result_tampered_state": (once("confirm", CONFIRM, "tamper"), schema()),
    "test_input_required_result_capabilities": (by_capability, schema()),
}


async def list_tools(ctx, params):
    tools = [{"name": n, "description": f"For the scenario {n}.", "inputSchema": s} for n, (_, s) in TOOLS.items()]
    return {"tools": tools, "ttlMs": 1000, "cacheScope": "private"} if ctx.protocol_version == MODERN else {"tools": tools}


async def call_tool(ctx, params):
    if params.name not in TOOLS:
        raise MCPError(-32602, f"Unknown tool: {params.name}")
    return await TOOLS[params.name][0](ctx, params.arguments or {}, params)


# --- resources, prompts, the rest -----------------------------------------------------------------

RESOURCES = {
    "test://static-text": {"mimeType": "text/plain", "text": "This is the content of the static text resource."},
    "test://static-binary": {"mimeType": "image/png", "blob": PNG},
    "test://watched-resource": {"mimeType": "text/plain", "text": "watched"},
    "test://example-resource": {"mimeType": "text/plain", "text": "example"},
}


async def list_resources(ctx, params):
    return cached(ctx, {"resources": [{"uri": u, "name": u.removeprefix("test://"), "mimeType": r["mimeType"]} for u, r in RESOURCES.items()]})


async def list_templates(ctx, params):
    template = {"uriTemplate": "test://template/{id}/data", "name": "template", "mimeType": "application/json"}
    return cached(ctx, {"resourceTemplates": [template]})


def cached(ctx, result):
    return {**result, "ttlMs": 1000, "cacheScope": "private"} if ctx.protocol_version == MODERN else result


async def read_resource(ctx, params):
    uri = str(params.uri)
    if uri in RESOURCES:
        return cached(ctx, {"contents": [{"uri": uri, **RESOURCES[uri]}]})
    parts = uri.removeprefix("test://").split("/")
    if len(parts) == 3 and parts[0] == "template" and parts[2] == "data":
        body = json.dumps({"id": parts[1], "templateTest": True, "data": f"Data for ID: {parts[1]}"})
        return cached(ctx, {"contents": [{"uri": uri, "mimeType": "application/json", "text": body}]})
    code = -32602 if ctx.protocol_version == MODERN else -32002
    raise MCPError(code, "Resource not found", {"uri": uri})


async def nothing(ctx, params):
    return {}


def argument(name):
    return {"name": name, "description": f"The argument {name}", "required": True}


PROMPTS = {
    "test_simple_prompt": [],
    "test_prompt_with_arguments": ["arg1", "arg2"],
    "test_prompt_with_embedded_resource": ["resourceUri"],
    "test_prompt_with_image": [],
    "test_input_required_result_prompt": [],
}


async def list_prompts(ctx, params):
    prompts = [{"name": n, "description": f"For {n}.", "arguments": [argument(a) for a in args]} for n, args in PROMPTS.items()]
    return cached(ctx, {"prompts": prompts})


async def get_prompt(ctx, params):
    user = lambda content: {"role": "user", "content": content}  # noqa: E731
    args = params.arguments or {}
    if params.name == "test_simple_prompt":
        messages = [user(text("This is a simple prompt for testing."))]
    elif params.name == "test_prompt_with_arguments":
        messages = [user(text(f"Prompt with arguments: arg1='{args.get('arg1')}', arg2='{args.get('arg2')}'"))]
    elif params.name == "test_prompt_with_embedded_resource":
        body = embedded(args.get("resourceUri", ""), "text/plain", "Embedded resource content for testing.")
        messages = [user(body), user(text("Please process the embedded resource above."))]
    elif params.name == "test_prompt_with_image":
        messages = [user(image()), user(text("Please analyze the image above."))]
    elif params.name == "test_input_required_result_prompt":
        request = form("What context should the prompt use?", ("context",), context=STRING)
        messages = [user(text(json.dumps(await ask(ctx, params, "user_context", request))))]
    else:
        raise MCPError(-32602, f"Unknown prompt: {params.name}")
    return {"messages": messages}


async def complete(ctx, params):
    return {"completion": {"values": ["paris", "park", "party"], "total": 3, "hasMore": False}}


class Events(EventStore):
    """Every event of a stream, for clients that come back."""

    def __init__(self):
        self.events = []

    async def store_event(self, stream_id, message):
        self.events.append((stream_id, message))
        return str(len(self.events))

    async def replay_events_after(self, last_event_id, send_callback):
        last = int(last_event_id)
        stream = self.events[last - 1][0]
        for number, (of, message) in enumerate(self.events, start=1):
            if number > last and of == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


def only(era, app):
    """The ASGI app, refusing what is not of `era` as a server that has never heard of it does."""

    async def refused(send, status, body):
        head = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})

    async def serve(scope, receive, send):
        if scope["type"] != "http" or era == "both":
            return await app(scope, receive, send)
        headers = {k.decode().lower(): v.decode() for k, v in scope["headers"]}
        chunks, more = [], True
        while more:
            event = await receive()
            chunks.append(event.get("body", b""))
            more = event.get("more_body", False)
        body = b"".join(chunks)
        try:
            message = json.loads(body) if body else {}
        except ValueError:
            message = {}
        message = message if isinstance(message, dict) else {}
        method = message.get("method")
        error = {"jsonrpc": "2.0", "id": message.get("id")}
        modern = headers.get("mcp-protocol-version") == MODERN or method in ("server/discover", "subscriptions/listen")
        if era == "legacy" and modern:
            error["error"] = {"code": -32000, "message": "Bad Request: Server not initialized"}
            return await refused(send, 400, error)
        if era == "modern" and (method == "initialize" or scope["method"] != "POST"):
            data = {"supported": [MODERN], "requested": "2025-11-25"}
            error["error"] = {"code": -32022, "message": "Unsupported protocol version", "data": data}
            return await refused(send, 400 if scope["method"] == "POST" else 405, error)
        rest = [{"type": "http.request", "body": body, "more_body": False}]

        async def again():
            return rest.pop() if rest else await receive()

        await app(scope, again, send)

    return serve


def worded(handler):
    """The handler's result in the words of the caller's era."""

    async def handle(ctx, params):
        try:
            result = await handler(ctx, params)
        except NotYet as question:
            result = question.result
        return {"resultType": "complete", **result} if ctx.protocol_version == MODERN else result

    return handle


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--era", choices=("both", "legacy", "modern"), default="both")
    era = parser.parse_args().era
    server = Server(
        "conformance-fixture",
        version="1.0.0",
        on_list_tools=worded(list_tools),
        on_call_tool=worded(call_tool),
        on_list_resources=worded(list_resources),
        on_list_resource_templates=worded(list_templates),
        on_read_resource=worded(read_resource),
        on_subscribe_resource=nothing,
        on_unsubscribe_resource=nothing,
        on_list_prompts=worded(list_prompts),
        on_get_prompt=worded(get_prompt),
        on_completion=worded(complete),
        on_set_logging_level=nothing,
        on_subscriptions_listen=ListenHandler(InMemorySubscriptionBus()),
    )
    app = server.streamable_http_app(event_store=Events(), retry_interval=500)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
    config = uvicorn.Config(only(era, app), log_level="warning", lifespan="on")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    sys.exit(main())
