//! Servers of SDKs, and what their tools are called.

use std::io::BufRead as _;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use super::is_failure;
use crate::axes::Rule;
use crate::caller::{Ask, Caller};
use crate::features::{check, text_of};
use crate::harness::{Program, free_port, peers};
use crate::text::Message;
use weirkeeper::protocol::revision::Revision;

/// A tool and its raw arguments.
type Use = (&'static str, &'static str);

/// A server of an SDK.
pub struct Server {
    pub name: &'static str,
    pub title: &'static str,
    pub section: String,
    /// A tool, and what stands in its answer.
    pub simple: (Use, &'static str),
    pub failing: Use,
    /// A tool, and how many steps it tells of.
    steps: (Use, usize),
    /// A tool that asks, what is answered, and what it says then; or why there is none.
    asking: Result<(Use, &'static str, &'static str), &'static str>,
    // Ended when dropped.
    _program: Option<Running>,
}

enum Running {
    Program { _program: Program },
    Fixture(Child),
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Running::Fixture(child) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Server {
    fn tool(&self, (tool, arguments): Use) -> Ask {
        Ask::tool(&format!("{}__{tool}", self.name), arguments)
    }

    async fn call(&self, caller: &Caller, tool: Use) -> Result<Message, String> {
        let said = caller.converse(&self.tool(tool), &has_no_roots).await?;
        Ok(said.last().cloned().unwrap())
    }

    pub async fn is_listed(&self, caller: &Caller) -> Result<(), String> {
        let (tools, _) = caller.all("tools/list", "tools", "name").await?;
        for (tool, _) in [self.simple.0, self.failing, self.steps.0] {
            let name = format!("{}__{tool}", self.name);
            check(tools.contains_key(&name), || format!("{name} is not listed"))?;
        }
        Ok(())
    }

    pub async fn answers(&self, caller: &Caller) -> Result<(), String> {
        let said = self.call(caller, self.simple.0).await?;
        check(text_of(&said)?.contains(self.simple.1), || said.0.clone())
    }

    pub async fn fails(&self, caller: &Caller) -> Result<(), String> {
        is_failure(&self.call(caller, self.failing).await?)
    }

    pub async fn goes_on(&self, caller: &Caller) -> Result<(), String> {
        let ask = self.tool(self.steps.0).with(r#""progressToken":"t-1.0""#);
        let said = caller.converse(&ask, &has_no_roots).await?;
        let told = said.iter().filter(|m| {
            m.method() == "notifications/progress"
                && m.raw(&["params", "progressToken"]).as_deref() == Some(r#""t-1.0""#)
        });
        check(told.count() == self.steps.1, || format!("{said:?}"))
    }

    pub async fn asks(&self, caller: &Caller) -> Result<Option<&'static str>, String> {
        let (tool, answer, then) = match self.asking {
            Ok(asking) => asking,
            Err(letter) => return Ok(Some(letter)),
        };
        let asked = Mutex::new(Vec::new());
        let respond = |method: &str, _: &Message| {
            asked.lock().unwrap().push(method.to_owned());
            answer.to_owned()
        };
        let said = caller.converse(&self.tool(tool), &respond).await?;
        let (said, asked) = (said.last().unwrap(), asked.into_inner().unwrap());
        if caller.at.revision < Revision::R2025_06_18 {
            check(asked.is_empty(), || format!("asked {asked:?}"))?;
            is_failure(said)?;
            return Ok(Some(Rule::NoElicitationYet.sign()));
        }
        check(asked == ["elicitation/create"], || format!("asked {asked:?}: {}", said.0))?;
        check(text_of(said)?.contains(then), || said.0.clone()).map(|()| None)
    }
}

// A server may want to know the roots of a client that has some, whatever is called.
fn has_no_roots(method: &str, _: &Message) -> String {
    assert_eq!(method, "roots/list");
    r#"{"roots":[]}"#.into()
}

/// All of them.
pub async fn all() -> Vec<Server> {
    let mut all = vec![
        super::rust::server("rmcp-old", "rmcp 3 (2025-11-25) HTTP", false).await,
        super::rust::server("rmcp-new", "rmcp 3 (2026-07-28) HTTP", true).await,
    ];
    for (name, title, mode) in [
        ("py1-stdio", "Python 1.x stdio", "stdio"),
        ("py1-http", "Python 1.x HTTP", "streamable-http"),
        ("py1-sse", "Python 1.x SSE", "sse"),
    ] {
        all.push(python_1(name, title, mode));
    }
    for (name, title, era) in [
        ("py2-old", "Python 2.x (2025-11-25) HTTP", "legacy"),
        ("py2-new", "Python 2.x (2026-07-28) HTTP", "modern"),
    ] {
        all.push(python_2(name, title, era));
    }
    for (name, title, mode) in [
        ("ts1-stdio", "TypeScript 1.x stdio", "stdio"),
        ("ts1-http", "TypeScript 1.x HTTP", "streamableHttp"),
        ("ts1-sse", "TypeScript 1.x SSE", "sse"),
    ] {
        all.push(typescript_1(name, title, mode));
    }
    all
}

/// The section of a server with what interpreters need to start on a busy machine.
fn section(name: &str, way: &str) -> String {
    format!("[upstreams.{name}]\n{way}\nconnect_timeout = \"50s\"\nlist_timeout = \"50s\"\n")
}

/// One in the test's own process.
pub fn rust(name: &'static str, title: &'static str, url: &str) -> Server {
    Server {
        name,
        title,
        section: section(name, &format!("url = {url:?}")),
        simple: (("echo", r#"{"text":"é"}"#), "é"),
        failing: ("broke", "{}"),
        steps: (("steps", "{}"), 2),
        asking: Err("g"),
        _program: None,
    }
}

const PYTHON_1: &str = "
from mcp.server.fastmcp import FastMCP, Context
from pydantic import BaseModel
class Form(BaseModel):
    n: int
server = FastMCP('py', host='127.0.0.1', port=PORT)
@server.tool()
def echo(text: str) -> str:
    return text
@server.tool()
def broke() -> str:
    raise ValueError('broke')
@server.tool()
async def steps(ctx: Context) -> str:
    for i in (1, 2):
        await ctx.report_progress(i, 2)
    return 'done'
@server.tool()
async def ask(ctx: Context) -> str:
    answer = await ctx.elicit('sure?', Form)
    return f'{answer.action} {answer.data.n}'
server.run('MODE')
";

fn python_1(name: &'static str, title: &'static str, mode: &str) -> Server {
    let python = peers().join("py1/bin/python");
    let port = free_port();
    let script = PYTHON_1.replace("PORT", &port.to_string()).replace("MODE", mode);
    let (way, program) = if mode == "stdio" {
        let way = format!(
            "command = \"{}\"\nargs = [\"-c\", {script:?}]\nisolation = \"consumer\"",
            python.display()
        );
        (way, None)
    } else {
        let program = Program::start(Command::new(python).args(["-c", &script]), port);
        let path = if mode == "sse" { "sse" } else { "mcp" };
        let way = format!("url = \"http://127.0.0.1:{port}/{path}\"");
        (way, Some(Running::Program { _program: program }))
    };
    Server {
        name,
        title,
        section: section(name, &way),
        simple: (("echo", r#"{"text":"é"}"#), "é"),
        failing: ("broke", "{}"),
        steps: (("steps", "{}"), 2),
        asking: Ok((("ask", "{}"), r#"{"action":"accept","content":{"n":7}}"#, "accept 7")),
        _program: program,
    }
}

// The server of the conformance tests.
fn python_2(name: &'static str, title: &'static str, era: &str) -> Server {
    let mut child = Command::new(peers().join("py2/bin/python"))
        .arg(peers().join("conformance/fixture.py"))
        .args(["--era", era])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut url = String::new();
    std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let answer = r#"{"action":"accept","content":{"username":"u","email":"e@x.example"}}"#;
    Server {
        name,
        title,
        section: section(name, &format!("url = {:?}", url.trim())),
        simple: (("test_simple_text", "{}"), "simple text response"),
        failing: ("test_error_handling", "{}"),
        steps: (("test_tool_with_progress", "{}"), 3),
        asking: Ok((("test_elicitation", r#"{"message":"m"}"#), answer, "action=accept")),
        _program: Some(Running::Fixture(child)),
    }
}

// `server-everything`.
fn typescript_1(name: &'static str, title: &'static str, mode: &str) -> Server {
    let (way, program) = if mode == "stdio" {
        let main = "servers/node_modules/@modelcontextprotocol/server-everything/dist/index.js";
        let main = peers().join(main);
        (format!("command = \"node\"\nargs = [\"{}\", \"stdio\"]", main.display()), None)
    } else {
        let port = free_port();
        let program = Program::everything(mode, port);
        let path = if mode == "sse" { "sse" } else { "mcp" };
        let way = format!("url = \"http://127.0.0.1:{port}/{path}\"");
        (way, Some(Running::Program { _program: program }))
    };
    Server {
        name,
        title,
        section: section(name, &way),
        simple: (("echo", r#"{"message":"é"}"#), "Echo: é"),
        failing: ("get-sum", r#"{"a":"no number"}"#),
        steps: (("trigger-long-running-operation", r#"{"duration":0.2,"steps":2}"#), 2),
        asking: Err("f"),
        _program: program,
    }
}
