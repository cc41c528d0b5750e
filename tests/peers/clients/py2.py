"""The Python SDK 2.x client over streamable HTTP.

usage: [WEIR_KEY=...] py2/bin/python py2.py URL PLAN_JSON [auto|modern|blind|legacy]
  auto    server/discover first, initialize when that is not understood (SDK default)
  modern  as auto, but a connection of the older era counts as failed
  blind   2026-07-28 from the first request on, without server/discover
  legacy  the initialize handshake only
plan.mjs has the steps.
"""

import asyncio
import warnings

import httpx2
from mcp import Client, types
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPDeprecationWarning

from plan import ListChanges, Watch, dump, emit, main, read_command_line, run_steps

MODERN = "2026-07-28"
URL, PLAN, ERA, HEADERS = read_command_line(["auto", "modern", "blind", "legacy"])
warnings.simplefilter("ignore", MCPDeprecationWarning)


def operations(client):
    def reference(step):
        kinds = {"ref/prompt": types.PromptReference, "ref/resource": types.ResourceTemplateReference}
        return kinds[step["ref"]["type"]].model_validate(step["ref"])

    return {
        "list_tools": lambda s: client.list_tools(cursor=s.get("cursor")),
        "call_tool": lambda s: client.call_tool(s["name"], s.get("arguments")),
        "list_prompts": lambda s: client.list_prompts(cursor=s.get("cursor")),
        "get_prompt": lambda s: client.get_prompt(s["name"], s.get("arguments")),
        "list_resources": lambda s: client.list_resources(cursor=s.get("cursor")),
        "read_resource": lambda s: client.read_resource(s["uri"]),
        "list_templates": lambda s: client.list_resource_templates(cursor=s.get("cursor")),
        "complete": lambda s: client.complete(
            reference(s), s["argument"], (s.get("context") or {}).get("arguments")
        ),
        "ping": lambda s: client.send_ping(),
    }


async def listen(client, ready):
    """Keeps a change stream open; the notifications reach the message handler too."""
    try:
        async with client.listen(
            tools_list_changed=True, prompts_list_changed=True, resources_list_changed=True
        ) as stream:
            ready.set_result(dump(stream.honored))
            async for _ in stream:
                pass
    except Exception as error:
        if not ready.done():
            ready.set_result({"error": str(error)})


async def script(connected):
    changes, watch = ListChanges(), Watch()

    async def on_message(message):
        if method := getattr(message, "method", None):
            changes.note(method)

    http = httpx2.AsyncClient(
        headers=HEADERS,
        timeout=httpx2.Timeout(30, read=300),
        trust_env=False,
        event_hooks={"response": [watch]},
    )
    client = Client(
        streamable_http_client(URL, http_client=http),
        mode={"blind": MODERN, "legacy": "legacy"}.get(ERA, "auto"),
        message_handler=on_message,
        read_timeout_seconds=30,
        client_info=types.Implementation(name="weir-test-py2", version="1.0.0"),
    )
    async with http, client:
        if ERA == "modern" and client.protocol_version != MODERN:
            raise RuntimeError(f"the server speaks {client.protocol_version}, not {MODERN}")
        hello = {
            "op": "connect",
            "ok": True,
            "protocolVersion": client.protocol_version,
            "era": "modern" if client.protocol_version == MODERN else "legacy",
            "serverInfo": dump(client.server_info),
            "instructions": client.instructions,
            "capabilities": dump(client.server_capabilities),
        }
        listener = None
        if client.protocol_version == MODERN:
            ready = asyncio.get_running_loop().create_future()
            listener = asyncio.create_task(listen(client, ready))
            hello["listening"] = await asyncio.wait_for(ready, 5)
        else:
            await watch.get_answered(2)
        connected.append(True)
        emit(hello)
        await run_steps(PLAN, operations(client), changes)
        if listener:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)


main(script)
