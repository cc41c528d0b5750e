"""The FastMCP 4 client, over streamable HTTP or with a program that it starts.

usage: [WEIR_KEY=...] py3/bin/python py3.py TARGET PLAN_JSON [auto|modern|legacy]
  TARGET  a URL, or a JSON list: the command line of a program that speaks over stdio
  auto    server/discover first, initialize when that is not understood (FastMCP's default)

plan.mjs has the steps. Here are two more, and a field:
  heard             what reached the handlers for progress, log messages, elicitation and sampling
  log_level         level (an old revision's logging/setLevel)
  list_tools        until?, without?: asks again until these tools, and not that one, are listed
"""

import asyncio
import json

import mcp_types as types
from fastmcp import Client
from fastmcp.client.elicitation import ElicitResult
from fastmcp.client.transports import StdioTransport, StreamableHttpTransport

from plan import ListChanges, dump, emit, main, read_command_line, run_steps

TARGET, PLAN, ERA, HEADERS = read_command_line(["auto", "modern", "legacy"])
MODERN = "2026-07-28"


def transport():
    if TARGET.startswith("["):
        command, *args = json.loads(TARGET)
        return StdioTransport(command, args, keep_alive=False)
    return StreamableHttpTransport(TARGET, headers=HEADERS)


class Heard:
    """What the handlers were given; each answers as a person would who agrees."""

    def __init__(self):
        self.all = {"progress": [], "log": [], "elicitation": [], "sampling": []}

    async def progress(self, progress, total, message):
        self.all["progress"].append([progress, total])

    async def log(self, message):
        self.all["log"].append([message.level, message.logger, message.data])

    async def elicit(self, message, response_type, params, context):
        self.all["elicitation"].append(message)
        return ElicitResult(action="accept", content={"username": "ada", "email": "ada@example.com"})

    async def sample(self, messages, params, context):
        self.all["sampling"].append(messages[0].content.text)
        return "sampled by FastMCP"


def operations(client, heard):
    def reference(step):
        kinds = {"ref/prompt": types.PromptReference, "ref/resource": types.ResourceTemplateReference}
        return kinds[step["ref"]["type"]].model_validate(step["ref"])

    async def tools(step):
        while True:
            listed = await client.list_tools_mcp(cursor=step.get("cursor"))
            names = {tool.name for tool in listed.tools}
            if names >= set(step.get("until", [])) and step.get("without") not in names:
                return listed
            await asyncio.sleep(0.1)

    async def tell(_):
        return Plain(heard.all)

    async def ping(_):
        return Plain({"answered": await client.ping()})

    async def level(step):
        return Plain({"set": await client.set_logging_level(step["level"])})

    return {
        "list_tools": tools,
        "call_tool": lambda s: client.call_tool_mcp(s["name"], s.get("arguments") or {}),
        "list_prompts": lambda s: client.list_prompts_mcp(cursor=s.get("cursor")),
        "get_prompt": lambda s: client.get_prompt_mcp(s["name"], s.get("arguments")),
        "list_resources": lambda s: client.list_resources_mcp(cursor=s.get("cursor")),
        "read_resource": lambda s: client.read_resource_mcp(s["uri"]),
        "list_templates": lambda s: client.list_resource_templates_mcp(cursor=s.get("cursor")),
        "complete": lambda s: client.complete_mcp(
            reference(s), s["argument"], (s.get("context") or {}).get("arguments")
        ),
        "ping": ping,
        "log_level": level,
        "heard": tell,
    }


class Plain(dict):
    """A result that is no model of the SDK's."""

    def model_dump(self, **_):
        return dict(self)


async def script(connected):
    changes, heard = ListChanges(), Heard()

    async def on_message(message):
        if method := getattr(message, "method", None):
            changes.note(method)

    client = Client(
        transport(),
        mode={"modern": MODERN}.get(ERA, ERA),
        message_handler=on_message,
        progress_handler=heard.progress,
        log_handler=heard.log,
        elicitation_handler=heard.elicit,
        sampling_handler=heard.sample,
        timeout=30,
        client_info=types.Implementation(name="weir-test-py3", version="1.0.0"),
    )
    async with client:
        connected.append(True)
        emit({"op": "connect", "ok": True, "protocolVersion": client.protocol_version,
              "serverInfo": dump(client.server_info)})  # fmt: skip
        await asyncio.sleep(0.5)  # Its notification stream opens by itself and does not say when.
        await run_steps(PLAN, operations(client, heard), changes)


main(script)
