"""The Python SDK 1.x client over streamable HTTP.

usage: [WEIR_KEY=...] py1/bin/python py1.py URL PLAN_JSON    (plan.mjs has the steps)
"""

import httpx
from mcp import ClientSession, types
from mcp.client.streamable_http import streamable_http_client

from plan import ListChanges, Watch, dump, emit, main, read_command_line, run_steps

URL, PLAN, _, HEADERS = read_command_line(["legacy"])


def operations(session):
    def page(step):
        cursor = step.get("cursor")
        return None if cursor is None else types.PaginatedRequestParams(cursor=cursor)

    def reference(step):
        kinds = {"ref/prompt": types.PromptReference, "ref/resource": types.ResourceTemplateReference}
        return kinds[step["ref"]["type"]].model_validate(step["ref"])

    return {
        "list_tools": lambda s: session.list_tools(params=page(s)),
        "call_tool": lambda s: session.call_tool(s["name"], s.get("arguments")),
        "list_prompts": lambda s: session.list_prompts(params=page(s)),
        "get_prompt": lambda s: session.get_prompt(s["name"], s.get("arguments")),
        "list_resources": lambda s: session.list_resources(params=page(s)),
        "read_resource": lambda s: session.read_resource(s["uri"]),
        "list_templates": lambda s: session.list_resource_templates(params=page(s)),
        "complete": lambda s: session.complete(
            reference(s), s["argument"], (s.get("context") or {}).get("arguments")
        ),
        "ping": lambda s: session.send_ping(),
    }


async def script(connected):
    changes, watch = ListChanges(), Watch()

    async def on_message(message):
        if isinstance(message, types.ServerNotification):
            changes.note(message.root.method)

    http = httpx.AsyncClient(
        headers=HEADERS,
        timeout=httpx.Timeout(30, read=300),
        trust_env=False,
        event_hooks={"response": [watch]},
    )
    async with (
        http,
        streamable_http_client(URL, http_client=http) as (reader, writer, session_id),
        ClientSession(
            reader,
            writer,
            message_handler=on_message,
            client_info=types.Implementation(name="weir-test-py1", version="1.0.0"),
        ) as session,
    ):
        hello = await session.initialize()
        await watch.get_answered(2)
        connected.append(True)
        emit(
            {
                "op": "connect",
                "ok": True,
                "protocolVersion": hello.protocolVersion,
                "sessionId": session_id(),
                "serverInfo": dump(hello.serverInfo),
                "instructions": hello.instructions,
                "capabilities": dump(hello.capabilities),
            }
        )
        await run_steps(PLAN, operations(session), changes)


main(script)
