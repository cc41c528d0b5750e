"""Runs a plan (a JSON list of steps) with a connected SDK client and prints one
JSON line per step. Used by py1.py and py2.py; plan.mjs describes the steps.
"""

import asyncio
import json
import os
import sys
import threading

DEFAULT_TIMEOUT_MS = 30_000
OPS = (
    "list_tools", "call_tool", "list_prompts", "get_prompt", "list_resources", "read_resource",
    "list_templates", "complete", "ping", "wait_list_changed", "stdin", "log_level", "heard",
)  # fmt: skip


def read_command_line(eras):
    """The command line shared by all client scripts: URL, plan, era."""
    args = sys.argv[1:]
    if len(args) not in (2, 3) or (len(args) == 3 and args[2] not in eras):
        sys.exit(f"usage: <script> URL PLAN_JSON [{'|'.join(eras)}]  (bearer key in WEIR_KEY)")
    plan = json.loads(args[1])
    if not isinstance(plan, list):
        sys.exit("the plan must be a JSON array")
    for step in plan:
        if step.get("op") not in OPS:
            sys.exit(f"unknown op {step.get('op')!r}")
    key = os.environ.get("WEIR_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return args[0], plan, args[2] if len(args) == 3 else eras[0], headers


def emit(line):
    print(json.dumps(line, separators=(",", ":")), flush=True)


def dump(model):
    """What the SDK understood of an answer, with the names used on the wire."""
    if model is None:
        return None
    return model.model_dump(mode="json", by_alias=True, exclude_unset=True)


def describe(error):
    # The SDKs run in task groups: what went wrong is wrapped, once or more.
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return {"code": "timeout", "message": str(error) or "no answer in time"}
    wire = getattr(error, "error", None)
    if wire is None:
        response = getattr(error, "response", None)
        code = getattr(response, "status_code", type(error).__name__)
        return {"code": code, "message": str(error)}
    out = {"code": wire.code, "message": wire.message}
    if wire.data is not None:
        out["data"] = wire.data
    return out


class ListChanges:
    """Remembers which lists changed; `note` takes the notification's method."""

    def __init__(self):
        self._seen = set()
        self._wake = asyncio.Event()

    def note(self, method):
        kind, _, rest = method.removeprefix("notifications/").partition("/")
        if rest == "list_changed":
            self._seen.add(kind)
            self._wake.set()

    async def wait(self, kinds, timeout):
        def done():
            return set(kinds) <= self._seen if kinds else bool(self._seen)

        try:
            async with asyncio.timeout(timeout):
                while not done():
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            pass
        seen = sorted(self._seen)
        self._seen.clear()
        return {"seen": seen}


class Lines:
    """Lines of standard input, read by a thread that never keeps the process alive."""

    def __init__(self):
        self._queue = None

    def _read(self, loop):
        rest = b""
        while chunk := os.read(0, 4096):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                loop.call_soon_threadsafe(self._queue.put_nowait, line.decode())
        loop.call_soon_threadsafe(self._queue.put_nowait, None)

    async def next(self):
        if self._queue is None:
            self._queue = asyncio.Queue()
            loop = asyncio.get_running_loop()
            threading.Thread(target=self._read, args=(loop,), daemon=True).start()
        return await self._queue.get()


async def run_steps(plan, ops, changes):
    """`ops` maps an op to an async function of the step that gives a result model."""
    lines = Lines()
    for step in plan:
        op = step["op"]
        timeout = step.get("timeout_ms", DEFAULT_TIMEOUT_MS) / 1000
        try:
            if op == "wait_list_changed":
                result = await changes.wait(step.get("kinds"), timeout)
            else:
                async with asyncio.timeout(timeout):
                    result = await lines.next() if op == "stdin" else dump(await ops[op](step))
        except Exception as error:
            emit({"op": op, "ok": False, "error": describe(error)})
        else:
            emit({"op": op, "ok": True, "result": result})


class Watch:
    """An HTTP response hook that tells when the first GET (the legacy
    notification stream) was answered, so that the client is known to listen."""

    def __init__(self):
        self._answered = asyncio.Event()

    async def __call__(self, response):
        if response.request.method == "GET":
            self._answered.set()

    async def get_answered(self, limit):
        try:
            await asyncio.wait_for(self._answered.wait(), limit)
        except TimeoutError:
            pass


def main(connect_and_run):
    """Runs the script; a connection that fails is a result, not a broken script."""
    connected = []
    try:
        asyncio.run(connect_and_run(connected))
    except (Exception, BaseExceptionGroup) as error:
        if connected:
            print(f"close: {describe(error)}", file=sys.stderr)
        else:
            emit({"op": "connect", "ok": False, "error": describe(error)})
